"""Positions while answers are decoded with a cache: what is prompt and what is answer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import (
    Calibration,
    RotateBy,
    UserError,
    generate,
    steer,
)
from ss_lens.models import forward
from ss_lens.models.forward import Origin
from ss_lens.steering.positions import (
    AllPositions,
    GeneratedOnly,
    LastPrompt,
    Positions,
    PromptOnly,
)
from tests.fitting import Fitted, padded
from tests.oracles import Edit, HuggingFaceOracle, dense_rotation, everywhere, relative_error

TOLERANCE = 1e-4

ANGLE = 130.0

PROMPTS = ("w9 w70 w33", "w12", "w50 w51 w52 w53 w54 w55")

ANSWER = (40, 17, 90, 8, 61)

EVERY: tuple[Positions, ...] = (
    AllPositions(),
    PromptOnly(),
    GeneratedOnly(),
    LastPrompt(1),
    LastPrompt(3),
)

SELECTIVE = EVERY[1:]

TINY = ("llama", "gpt2", "gemma3")


@pytest.fixture(scope="module")
def oracles(tiny_folders: dict[str, Path]) -> dict[str, HuggingFaceOracle]:
    return {name: HuggingFaceOracle(tiny_folders[name]) for name in TINY}


def steered_tokens(positions: Positions, length: int, prompt_length: int) -> list[bool]:
    """Independently of the package: which tokens of one unpadded sequence are steered."""
    ranges = {
        "AllPositions()": range(length),
        "PromptOnly()": range(prompt_length),
        "GeneratedOnly()": range(prompt_length, length),
        "LastPrompt(k=1)": range(prompt_length - 1, prompt_length),
        "LastPrompt(k=3)": range(prompt_length - 3, prompt_length),
    }
    return [i in ranges[repr(positions)] for i in range(length)]


def edit_of_some(edit: Edit, positions: Positions, prompt_length: int) -> Edit:
    """``edit`` on the chosen tokens of ``[1, token, d_model]``, one token at a time."""

    def some(h: Tensor) -> Tensor:
        chosen = steered_tokens(positions, h.shape[1], prompt_length)
        pairs = zip(h.split(1, dim=1), chosen, strict=True)
        return torch.cat([edit(token) if on else token for token, on in pairs], dim=1)

    return some


def oracle_edits(calibration: Calibration, positions: Positions, prompt_length: int) -> dict:
    edit = edit_of_some(dense_rotation(calibration.plane, ANGLE), positions, prompt_length)
    return everywhere(edit, calibration.selected_sites)


def answered(ids: Tensor) -> Tensor:
    return torch.cat((ids, torch.tensor([ANSWER])), dim=1)


def spoken(oracle: HuggingFaceOracle, ids: list[int]) -> str:
    """The answer up to its stop token."""
    ended = ids[: ids.index(2)] if 2 in ids else ids
    return oracle.tokenizer.decode(ended, skip_special_tokens=True)


def hooks_on(model: TransformerBridge) -> tuple[int, int, int]:
    whole = model.original_model
    points = sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.hook_dict.values())
    return points, len(whole._forward_pre_hooks), len(whole._forward_hooks)


@torch.inference_mode()
def decoded(
    model: TransformerBridge,
    rows: Sequence[Tensor],
    side: str,
    told: bool,
) -> list[Tensor]:
    """Last-column logits of a cached prompt pass and of each pass over one token of ``ANSWER``."""
    ids, mask = padded(rows, side)
    origin = Origin(tuple(range(len(rows))), mask.sum(dim=1)) if told else None
    cache, seen = None, []
    for token in (*ANSWER, None):
        logits, cache = forward.run(model, ids, mask, cache, keep_cache=True, origin=origin)
        seen.append(logits)
        if token is not None:
            ids = torch.full((len(rows), 1), token)
            mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
    return seen


# --- Cached decoding -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "told"), [*((name, False) for name in TINY), ("llama", True)]
)
@pytest.mark.parametrize("positions", EVERY, ids=repr)
def test_cached_decoding_equals_plain_hooks_without_cache_or_padding(
    architecture: str,
    told: bool,
    positions: Positions,
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    """Both where the loop says what is prompt, and where it is inferred from the cache."""
    model, oracle = tiny_models[architecture], oracles[architecture]
    calibration = fitted(architecture)
    rows = [oracle.ids(prompt) for prompt in PROMPTS]
    with steer(model, calibration, RotateBy(ANGLE), positions=positions):
        got = decoded(model, rows, "left", told)
    for row, prompt in enumerate(rows):
        edits = oracle_edits(calibration, positions, prompt.shape[1])
        whole = oracle.logits(answered(prompt), edits)[prompt.shape[1] - 1 :]
        assert relative_error(torch.stack([step[row] for step in got]), whole) < TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("positions", SELECTIVE, ids=repr)
def test_right_padding_shifts_no_position_during_decoding(
    architecture: str,
    positions: Positions,
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], oracles[architecture]
    calibration = fitted(architecture)
    rows = [oracle.ids(prompt) for prompt in PROMPTS]
    with steer(model, calibration, RotateBy(ANGLE), positions=positions):
        got = decoded(model, rows, "right", told=False)[1:]
    for row, prompt in enumerate(rows):
        edits = oracle_edits(calibration, positions, prompt.shape[1])
        whole = oracle.logits(answered(prompt), edits)[prompt.shape[1] :]
        assert relative_error(torch.stack([step[row] for step in got]), whole) < TOLERANCE


@pytest.mark.parametrize("architecture", TINY)
def test_generated_answers_equal_full_recomputation_for_each_choice_of_positions(
    architecture: str,
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], oracles[architecture]
    calibration = fitted(architecture)
    answers = {"none": generate(model, PROMPTS, max_new_tokens=7)}
    for positions in EVERY:
        with steer(model, calibration, RotateBy(ANGLE), positions=positions):
            answers[repr(positions)] = generate(model, PROMPTS, max_new_tokens=7)
        assert answers[repr(positions)] == [
            oracle.greedy(p, 7, oracle_edits(calibration, positions, oracle.ids(p).shape[1]))
            for p in PROMPTS
        ]
    assert len({tuple(texts) for texts in answers.values()}) > 3  # the choice matters


def test_the_first_generated_token_is_the_unsteered_models(
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    model, rows = tiny_models["llama"], [oracles["llama"].ids(prompt) for prompt in PROMPTS]
    plain = decoded(model, rows, "left", told=True)
    with steer(model, fitted("llama"), RotateBy(ANGLE), positions=GeneratedOnly()):
        steered = decoded(model, rows, "left", told=True)
    assert torch.equal(steered[0], plain[0])
    assert relative_error(steered[1], plain[1]) > 0.01


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("method", ["generate", "hf_generate"])
@pytest.mark.parametrize("positions", [GeneratedOnly(), LastPrompt(3)], ids=repr)
def test_the_models_own_generation_knows_prompt_from_answer(
    architecture: str,
    method: str,
    positions: Positions,
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], oracles[architecture]
    calibration, ids = fitted(architecture), oracle.ids(PROMPTS[0])
    options = {"max_new_tokens": 7, "do_sample": False, "return_type": "tokens"}
    if method == "generate":
        options["verbose"] = False
    with steer(model, calibration, RotateBy(ANGLE), positions=positions):
        out = getattr(model, method)(ids, **options)[0, ids.shape[1] :].tolist()
    answer = spoken(oracle, out)
    edits = oracle_edits(calibration, positions, ids.shape[1])
    assert answer == oracle.greedy(PROMPTS[0], 7, edits)


def test_the_models_own_generation_takes_a_padded_batch(
    tiny_llama: TransformerBridge, oracles: dict[str, HuggingFaceOracle], fitted: Fitted
) -> None:
    oracle, calibration = oracles["llama"], fitted("llama")
    ids, mask = padded([oracle.ids(prompt) for prompt in PROMPTS], "left")
    for positions in (GeneratedOnly(), LastPrompt(3)):
        with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=positions):
            out = tiny_llama.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=7,
                do_sample=False,
                return_type="tokens",
                verbose=False,
            )[:, ids.shape[1] :]
        for prompt, row in zip(PROMPTS, out.tolist(), strict=True):
            answer = spoken(oracle, row)
            edits = oracle_edits(calibration, positions, oracle.ids(prompt).shape[1])
            assert answer == oracle.greedy(prompt, 7, edits)


@pytest.mark.parametrize("positions", [GeneratedOnly(), PromptOnly(), LastPrompt(1)], ids=repr)
def test_generation_without_a_cache_is_refused_because_its_prompt_cannot_be_told(
    positions: Positions, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    before = hooks_on(tiny_llama)
    with (
        pytest.raises(UserError, match=r"cannot be told; generate with the cache \(use_past_kv_"),
        steer(tiny_llama, fitted("llama"), RotateBy(ANGLE), positions=positions),
    ):
        tiny_llama.generate(
            torch.tensor([[1, 9, 40]]),
            max_new_tokens=3,
            do_sample=False,
            use_past_kv_cache=False,
            stop_at_eos=False,
            verbose=False,
        )
    assert hooks_on(tiny_llama) == before


# --- A loop that says what is prompt -------------------------------------------------------------


@pytest.mark.parametrize("positions", [PromptOnly(), LastPrompt(3), GeneratedOnly()], ids=repr)
def test_a_prompt_may_be_run_in_two_passes_where_the_loop_says_where_it_ends(
    positions: Positions,
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    oracle, calibration = oracles["llama"], fitted("llama")
    prompts = [oracle.ids(prompt) for prompt in PROMPTS]
    shared = 4
    assert len({tuple(prompt[0, :shared].tolist()) for prompt in prompts}) == 1
    ids, mask = padded([answered(prompt)[:, shared:] for prompt in prompts], "right")
    lengths = torch.tensor([prompt.shape[1] for prompt in prompts])
    with (
        torch.inference_mode(),
        steer(tiny_llama, calibration, RotateBy(ANGLE), positions=positions),
    ):
        prefix = forward.compute_prefix(tiny_llama, tuple(prompts[0][0, :shared].tolist()))
        seen: list[Tensor] = []
        with tiny_llama.hooks(fwd_hooks=[("unembed.hook_out", lambda h, hook: seen.append(h))]):
            # The answers are part of the second pass: no cache says where the prompts end.
            for row in range(len(prompts)):
                n = int(mask[row].sum())
                forward.run(
                    tiny_llama,
                    ids[row : row + 1, :n],
                    torch.ones(1, shared + n, dtype=torch.long),
                    cache=prefix.repeated(1),
                    origin=Origin((row,), lengths[row : row + 1]),
                )
    for row, prompt in enumerate(prompts):
        edits = oracle_edits(calibration, positions, prompt.shape[1])
        expected = oracle.logits(answered(prompt), edits)
        assert relative_error(seen[row][0, -1], expected[-1]) < TOLERANCE


def test_what_continues_a_cache_is_generated_unless_the_loop_says_otherwise(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama")
    first, rest = torch.tensor([[1, 9, 40]]), torch.tensor([[6, 70, 11]])
    whole = torch.ones(1, 6, dtype=torch.long)
    found = {}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where nothing is selected
        prefix = forward.compute_prefix(tiny_llama, (1, 9, 40))
        assert first.shape[1] == prefix.length
        for origin in (None, Origin((0,), torch.tensor([6]))):
            for positions in (AllPositions(), PromptOnly(), GeneratedOnly()):
                with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=positions):
                    found[repr(positions), origin is None], _ = forward.run(
                        tiny_llama, rest, whole, cache=prefix.repeated(1), origin=origin
                    )
    steered = found["AllPositions()", True]
    assert torch.equal(found["GeneratedOnly()", True], steered)
    assert torch.equal(found["PromptOnly()", False], steered)
    assert torch.equal(found["GeneratedOnly()", False], found["PromptOnly()", True])
    assert relative_error(found["PromptOnly()", True], steered) > 0.01
