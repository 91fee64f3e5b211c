"""Sweeps that compute once what rows have in common, against one steered run per angle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import (
    Calibration,
    RotateBy,
    RotateTo,
    generate,
    steer,
    sweep_angles,
)
from ss_lens.generation import reuse as shared_work
from ss_lens.generation.reuse import Reach
from ss_lens.geometry.operators import AngularOperator
from ss_lens.models import forward
from ss_lens.models.chat import tokenize
from ss_lens.models.forward import Batch, Origin
from ss_lens.steering.positions import (
    AllPositions,
    GeneratedOnly,
    LastPrompt,
    Positions,
    PromptOnly,
)
from tests.conftest import ARCHITECTURES
from tests.generation.conftest import EVERY, SITES, Fitted
from tests.oracles import relative_error

NEW = 6
ANGLES = (0.0, 75.0, 200.0)
LONG = "w60 w61 w62 w63 w64 w65 w66 w67 w68 w69 w70 w71"
# Of mixed lengths, two of a length, one twice; with no padding, and with less and with more of it
# than the prefix has tokens.
PROMPTS = ["w9 w70 w33", "w12", LONG, "w50 w51 w52", "w12", LONG[:-12]]
ROWS, DISTINCT = 18, 5
# What they share is longer than the tiny Gemmas' windows, and each begins at another token of it.
ALIKE = [f"{LONG} {rest}" for rest in ("w9", "w10 w11 w12 w13", "w14 w15", "w9")]


def one_by_one(
    model: TransformerBridge,
    calibration: Calibration,
    operator: type[AngularOperator],
    prompts: list[str],
    positions: Positions,
    max_new_tokens: int = NEW,
) -> list[str]:
    """What a sweep must give, in its order: one run of whole prompts per angle."""
    texts = []
    for angle in ANGLES:
        with steer(model, calibration, operator(angle), positions=positions):
            texts.append(generate(model, prompts, max_new_tokens=max_new_tokens))
    return [text for of_prompt in zip(*texts, strict=True) for text in of_prompt]


def swept(
    model: TransformerBridge,
    calibration: Calibration,
    operator: type[AngularOperator],
    prompts: list[str],
    positions: Positions,
    **options: int,
) -> list[str]:
    options = {"max_new_tokens": NEW, **options}
    table = sweep_angles(
        model, calibration, operator, prompts, ANGLES, positions=positions, **options
    )
    assert table["angle_deg"].tolist() == [*ANGLES] * len(prompts)
    return table["response"].tolist()


@contextmanager
def counted_rows(model: TransformerBridge) -> Iterator[list[list[tuple[int, int]]]]:
    """For each block, the ``(rows, tokens)`` of each of its passes."""
    passes: list[list[tuple[int, int]]] = [[] for _ in model.blocks]
    handles = []
    for block, seen in zip(model.blocks, passes, strict=True):

        def see(hook_in: object, args: tuple, seen: list = seen) -> None:
            seen.append(tuple(args[0].shape[:2]))

        handles.append(block.hook_in.register_forward_pre_hook(see))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


# --- A sweep is its single runs ------------------------------------------------------------------


@pytest.mark.parametrize("first", SITES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sweep_equals_one_run_per_angle(
    architecture: str, first: int, tiny_models: dict[str, TransformerBridge], fitted: Fitted
) -> None:
    model, calibration = tiny_models[architecture], fitted(architecture, first)
    alone = one_by_one(model, calibration, RotateBy, PROMPTS, AllPositions())
    assert swept(model, calibration, RotateBy, PROMPTS, AllPositions()) == alone
    assert swept(model, calibration, RotateBy, PROMPTS, AllPositions(), batch_rows=4) == alone


@pytest.mark.parametrize("positions", EVERY[1:], ids=repr)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sweep_of_some_positions_equals_one_run_per_angle(
    architecture: str,
    positions: Positions,
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
) -> None:
    model, calibration = tiny_models[architecture], fitted(architecture, 1)
    alone = one_by_one(model, calibration, RotateTo, PROMPTS, positions)
    assert swept(model, calibration, RotateTo, PROMPTS, positions) == alone


@pytest.mark.parametrize("positions", [AllPositions(), LastPrompt(4)], ids=repr)
@pytest.mark.parametrize("batch_rows", [1, 2, 7])
def test_a_sweep_does_not_depend_on_how_its_batch_is_split(
    batch_rows: int, positions: Positions, tiny_models: dict[str, TransformerBridge], fitted: Fitted
) -> None:
    """``batch_rows`` below the number of angles splits these too."""
    model, calibration = tiny_models["gemma3"], fitted("gemma3", 1)
    whole = swept(model, calibration, RotateTo, PROMPTS, positions, batch_rows=100)
    assert swept(model, calibration, RotateTo, PROMPTS, positions, batch_rows=batch_rows) == whole


@pytest.mark.parametrize("positions", EVERY, ids=repr)
@pytest.mark.parametrize("prompts", [["w12"], [LONG], ["w12", "w12"]], ids=len)
def test_a_prompt_that_is_the_shared_prefix_and_one_token_is_swept_alike(
    prompts: list[str],
    positions: Positions,
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
) -> None:
    model, calibration = tiny_models["gemma2"], fitted("gemma2", 1)
    reach = Reach.of(model, calibration.selected_sites, positions)
    tokens = tokenize(model, prompts)
    assert len(reach.prefix_of(tokens)) == len(tokens[0]) - reach.keep
    alone = one_by_one(model, calibration, RotateBy, prompts, positions)
    assert swept(model, calibration, RotateBy, prompts, positions) == alone


@pytest.mark.parametrize("positions", [AllPositions(), LastPrompt(4)], ids=repr)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
def test_prompts_that_share_more_than_a_window_are_swept_alike(
    architecture: str,
    positions: Positions,
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
) -> None:
    model, calibration = tiny_models[architecture], fitted(architecture, 1)
    alone = one_by_one(model, calibration, RotateBy, ALIKE, positions)
    assert swept(model, calibration, RotateBy, ALIKE, positions) == alone


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_a_prompt_that_another_continues_is_swept_alike(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain text: the shortest prompt is what all share and one token more, others far longer."""
    model, calibration = tiny_models[architecture], fitted(architecture, 1)
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    prompts = ["w9 w10 w11", "w9 w10 w11 w12", f"w9 w10 {LONG}"]
    with pytest.warns(UserWarning, match="no chat template") as _:
        tokenize(model, prompts)
    for positions in (AllPositions(), LastPrompt(2)):
        alone = one_by_one(model, calibration, RotateBy, prompts, positions)
        assert swept(model, calibration, RotateBy, prompts, positions) == alone


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_prompts_that_share_nothing_are_swept_alike(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calibration = tiny_models[architecture], fitted(architecture, 1)
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    prompts = ["w9 w10 w11", "w12", LONG]
    alone = one_by_one(model, calibration, RotateBy, prompts, AllPositions())
    assert swept(model, calibration, RotateBy, prompts, AllPositions()) == alone


# --- Logits --------------------------------------------------------------------------------------


def batch_of(model: TransformerBridge, prompts: list[str]) -> tuple[Batch, list[tuple[int, ...]]]:
    tokens = tokenize(model, prompts)
    (batch,) = forward.batches(tokens, [range(len(tokens))], side="left", pad_id=3, device="cpu")
    return batch, tokens


@torch.inference_mode()
def two_steps(model: TransformerBridge, batch: Batch, ran: tuple[Tensor, object]) -> Tensor:
    """The logits after the prompts and after one token more."""
    logits, cache = ran
    mask = torch.cat((batch.mask, batch.mask.new_ones(len(batch.rows), 1)), dim=1)
    origin = Origin(batch.rows, batch.lengths)
    token = torch.full((len(batch.rows), 1), 40)
    after, _ = forward.run(model, token, mask, cache, keep_cache=True, origin=origin)
    return torch.stack((logits, after))


@pytest.mark.parametrize(
    ("first", "positions", "prompts"),
    [
        (0, AllPositions(), PROMPTS),
        *((1, positions, PROMPTS) for positions in EVERY),
        (1, AllPositions(), ALIKE),
        (1, LastPrompt(4), ALIKE),
        (2, AllPositions(), PROMPTS),
        (2, LastPrompt(4), PROMPTS),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_after_shared_work_equal_those_of_whole_rows(
    architecture: str,
    first: int,
    positions: Positions,
    prompts: list[str],
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
) -> None:
    model, calibration = tiny_models[architecture], fitted(architecture, first)
    pairs = [(prompt, angle) for prompt in prompts for angle in ANGLES]
    batch, tokens = batch_of(model, [prompt for prompt, _ in pairs])
    reach = Reach.of(model, calibration.selected_sites, positions)
    rows = RotateBy([angle for _, angle in pairs])
    strengths = torch.tensor([ANGLES.index(angle) for _, angle in pairs])
    shared = reach.prefix_of(tokens)
    assert shared
    with torch.inference_mode():
        with steer(model, calibration, rows, positions=positions):
            origin = Origin(batch.rows, batch.lengths)
            whole = forward.run(model, batch.ids, batch.mask, keep_cache=True, origin=origin)
            expected = two_steps(model, batch, whole)
        # Where the edit does not reach, the row or rows are fewer than the strengths.
        edited = RotateBy(ANGLES) if reach.prefix < reach.blocks else RotateBy(0)
        with steer(model, calibration, edited):
            prefix = shared_work.run_prefix(model, shared, len(ANGLES), reach)
        edited = rows if reach.prompt < reach.blocks else RotateBy(0)
        with steer(model, calibration, edited, positions=positions):
            ran = shared_work.run_prompts(model, batch, prefix, strengths, reach)
        edited = rows if reach.answer else RotateBy(0)
        with steer(model, calibration, edited, positions=positions):
            got = two_steps(model, batch, ran)
    assert relative_error(got, expected) < 1e-4
    assert relative_error(expected[:, 1::3], expected[:, 2::3]) > 1e-3  # the angles matter


@pytest.mark.parametrize("prompts", [PROMPTS, ALIKE], ids=["mixed", "alike"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
def test_the_cache_of_a_shared_prefix_equals_what_a_padded_batch_leaves(
    architecture: str,
    prompts: list[str],
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
) -> None:
    """Layer by layer, wherever the mask lets anyone look; sliding windows are cut alike."""
    model, calibration = tiny_models[architecture], fitted(architecture, 1)
    reach = Reach.of(model, calibration.selected_sites, AllPositions())
    batch, tokens = batch_of(model, prompts)
    shared = reach.prefix_of(tokens)
    with torch.inference_mode():
        prefix = shared_work.run_prefix(model, shared, 1, reach)
        assert prefix is not None
        head = slice(0, prefix.length)
        _, plain = forward.run(model, batch.ids[:, head], batch.mask[:, head], keep_cache=True)
        every = torch.arange(len(prompts))
        padding = batch.ids.shape[1] - batch.lengths
        built = prefix.cache(model, padding, torch.zeros_like(padding), every, depth=0)
    for got, expected in zip(built.layers, plain.layers, strict=True):
        assert type(got) is type(expected)
        assert got.get_seq_length() == expected.get_seq_length() == prefix.length
        seen = batch.mask[:, head][:, -got.keys.shape[2] :].bool()
        for name in ("keys", "values"):
            ours, theirs = (getattr(layer, name).transpose(1, 2)[seen] for layer in (got, expected))
            assert relative_error(ours, theirs) < 1e-4


# --- The work is done once -----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prefix_and_lower_blocks_run_once_and_upper_blocks_once_per_angle(
    architecture: str, tiny_models: dict[str, TransformerBridge], fitted: Fitted
) -> None:
    model, calibration = tiny_models[architecture], fitted(architecture, 1)
    lengths = [len(ids) for ids in tokenize(model, PROMPTS)]
    shared = 6 if architecture != "qwen2" else None
    with counted_rows(model) as passes:
        swept(model, calibration, RotateBy, PROMPTS, AllPositions(), max_new_tokens=2)
    below, *above = passes
    if shared is not None:
        # Prefix; the different prompts; a token more for each that has not ended.
        assert below[:2] == [(1, shared), (DISTINCT, max(lengths) - shared)]
    prefix, rest, _ = below
    assert prefix[0] == 1
    assert rest[0] == DISTINCT
    assert sum(n for _, n in (prefix, rest)) == max(lengths)
    for seen in above:
        assert seen == [(3, prefix[1]), (ROWS, rest[1]), below[2]]


def test_what_positions_leave_alone_is_run_without_regard_to_the_angle(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama", 1)
    found = {}
    for positions in (PromptOnly(), LastPrompt(1), GeneratedOnly()):
        with counted_rows(tiny_llama) as passes:
            swept(tiny_llama, calibration, RotateBy, PROMPTS, positions, max_new_tokens=1)
        found[type(positions)] = [[rows for rows, _ in seen] for seen in passes]
    assert found[PromptOnly] == [[1, DISTINCT], [3, ROWS], [3, ROWS]]
    assert found[LastPrompt] == [[1, DISTINCT], [1, ROWS], [1, ROWS]]
    assert found[GeneratedOnly] == [[1, DISTINCT]] * 3


@pytest.mark.parametrize("batch_rows", [1, 2, 4, 6])
def test_no_pass_has_more_rows_than_allowed(
    batch_rows: int, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, options = fitted("llama", 1), {"batch_rows": batch_rows, "max_new_tokens": 2}
    with counted_rows(tiny_llama) as passes:
        swept(tiny_llama, calibration, RotateBy, PROMPTS, AllPositions(), **options)
    assert max(rows for seen in passes for rows, _ in seen) == batch_rows


def until(text: str, stops: tuple[str, ...]) -> int:
    """How many words come before the first stop."""
    words = text.split()
    return min(words.index(stop) if stop in words else len(words) for stop in stops)


@pytest.mark.parametrize("positions", [AllPositions(), LastPrompt(1), GeneratedOnly()], ids=repr)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_rows_whose_answer_is_over_leave_the_batch_and_change_no_answer(
    architecture: str,
    positions: Positions,
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calibration = tiny_models[architecture], fitted(architecture, 1)
    free = one_by_one(model, calibration, RotateBy, PROMPTS, positions, max_new_tokens=10)
    words = sorted({word for text in free for word in text.split()})
    choices = [*combinations(words, 1), *combinations(words, 2)]
    lengths = {choice: [until(text, choice) for text in free] for choice in choices}
    # Most rows stop early, but not all.
    stops = min((c for c in choices if max(lengths[c]) == 10), key=lambda c: sum(lengths[c]))
    ids = [int(model.tokenizer.convert_tokens_to_ids(word)) for word in stops]
    monkeypatch.setattr(model.original_model.generation_config, "eos_token_id", ids)
    alone = one_by_one(model, calibration, RotateBy, PROMPTS, positions, max_new_tokens=10)
    assert [len(text.split()) for text in alone] == lengths[stops]
    assert len({*map(len, alone)}) > 1
    with counted_rows(model) as passes:
        assert swept(model, calibration, RotateBy, PROMPTS, positions, max_new_tokens=10) == alone
    rows = [n for n, tokens in passes[-1] if tokens == 1]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < ROWS


# --- Where nothing may be shared -----------------------------------------------------------------


@pytest.mark.parametrize("positions", [AllPositions(), GeneratedOnly()], ids=repr)
@pytest.mark.parametrize("outer", [LastPrompt(4), AllPositions()], ids=repr)
def test_a_sweep_inside_another_edit_shares_nothing_and_equals_single_runs_there(
    outer: Positions, positions: Positions, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    """Its hooks may count rows, or tell the tokens of a prompt."""
    calibration = fitted("llama", 2)
    with steer(tiny_llama, fitted("llama", 0), RotateBy(40), positions=outer):
        alone = one_by_one(tiny_llama, calibration, RotateBy, PROMPTS, positions)
        with counted_rows(tiny_llama) as passes:
            assert swept(tiny_llama, calibration, RotateBy, PROMPTS, positions) == alone
    assert {rows for seen in passes for rows, _ in seen} == {ROWS}


def test_a_sweep_inside_an_edit_with_a_strength_per_row_keeps_its_rows(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    with steer(tiny_llama, fitted("llama", 0), RotateBy([20.0] * ROWS)):
        got = swept(tiny_llama, fitted("llama", 2), RotateBy, PROMPTS, AllPositions())
    with steer(tiny_llama, fitted("llama", 0), RotateBy(20.0)):
        alone = one_by_one(tiny_llama, fitted("llama", 2), RotateBy, PROMPTS, AllPositions())
    assert got == alone


@pytest.mark.parametrize("positions", EVERY, ids=repr)
def test_a_model_that_suits_no_sharing_is_swept_alike(
    positions: Positions,
    tiny_llama: TransformerBridge,
    fitted: Fitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibration = fitted("llama", 1)
    alone = one_by_one(tiny_llama, calibration, RotateBy, PROMPTS, positions)
    monkeypatch.setattr(shared_work, "keeps_every_key", lambda model: False)
    with counted_rows(tiny_llama) as passes:
        assert swept(tiny_llama, calibration, RotateBy, PROMPTS, positions) == alone
    assert {rows for seen in passes for rows, _ in seen} == {ROWS}


# --- Hooks ----------------------------------------------------------------------------


def test_a_sweep_that_fails_leaves_no_hook_behind(
    tiny_llama: TransformerBridge, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = forward.run, iter(range(99))

    def failing(*args: object, **options: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return run(*args, **options)

    monkeypatch.setattr(forward, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        swept(tiny_llama, fitted("llama", 1), RotateBy, PROMPTS, AllPositions())
    assert not any(block._forward_pre_hooks for block in tiny_llama.blocks)
    assert not any(point.fwd_hooks for point in tiny_llama.hook_dict.values())
