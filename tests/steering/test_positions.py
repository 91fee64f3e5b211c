"""Steering of some positions, against unpadded, uncached models with edits of chosen tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import (
    Calibration,
    RotateBy,
    UserError,
    generate,
    steer,
    sweep_angles,
)
from ss_lens.core.values import read_value
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


# --- One pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stream", ["norm outputs", "resid_mid", "resid_post"])
def test_padded_logits_equal_plain_hooks_on_the_same_tokens_of_unpadded_prompts(
    architecture: str,
    side: str,
    stream: str,
    tiny_models: dict[str, TransformerBridge],
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    model, oracle = tiny_models[architecture], oracles[architecture]
    calibration = fitted(architecture, *(() if stream == "norm outputs" else (stream,)))
    rows = [oracle.ids(prompt) for prompt in PROMPTS]
    ids, mask = padded(rows, side)
    for positions in (PromptOnly(), LastPrompt(1), LastPrompt(3)):
        with (
            torch.inference_mode(),
            steer(model, calibration, RotateBy(ANGLE), positions=positions),
        ):
            got = model(ids, attention_mask=mask)
        for row, alone in enumerate(rows):
            edits = oracle_edits(calibration, positions, alone.shape[1])
            expected = oracle.logits(alone, edits)
            real = got[row][mask[row].bool()]
            assert relative_error(real, expected) < TOLERANCE
            assert relative_error(real[-1], oracle.logits(alone)[-1]) > 0.01


@pytest.mark.parametrize("stream", ["ln2_out", "resid_mid", "resid_post"])
@pytest.mark.parametrize("k", [1, 2])
def test_positions_before_the_steered_ones_are_bit_for_bit_as_unsteered(
    stream: str, k: int, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    ids = torch.tensor([[1, 9, 40, 6, 70]])
    with torch.inference_mode():
        expected = tiny_llama(ids)
        with steer(tiny_llama, fitted("llama", stream), RotateBy(ANGLE), positions=LastPrompt(k)):
            got = tiny_llama(ids)
    assert torch.equal(got[:, :-k], expected[:, :-k])
    assert not torch.equal(got[:, -k], expected[:, -k])


def test_last_prompt_is_the_whole_prompt_where_that_is_shorter(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama")
    ids, mask = padded([torch.tensor([[1, 9]]), torch.tensor([[1, 9, 40, 6]])], "left")
    found = []
    for positions in (LastPrompt(4), PromptOnly(), LastPrompt(3)):
        with (
            torch.inference_mode(),
            steer(tiny_llama, calibration, RotateBy(ANGLE), positions=positions),
        ):
            found.append(tiny_llama(ids, attention_mask=mask)[:, -1])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2][0], found[1][0])
    assert not torch.equal(found[2][1], found[1][1])


def test_everything_in_a_pass_without_a_cache_is_prompt(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, ids = fitted("llama"), torch.tensor([[1, 9, 40, 6, *ANSWER]])
    with torch.inference_mode():
        plain = tiny_llama(ids)
        with steer(tiny_llama, calibration, RotateBy(ANGLE)):
            all_steered = tiny_llama(ids)
        with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=PromptOnly()):
            assert torch.equal(tiny_llama(ids), all_steered)
        with (
            pytest.warns(UserWarning, match=r"GeneratedOnly\(\) selected no token in 1 forward"),
            steer(tiny_llama, calibration, RotateBy(ANGLE), positions=GeneratedOnly()),
        ):
            assert torch.equal(tiny_llama(ids), plain)


def test_embeddings_instead_of_ids_are_steered_alike(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, ids = fitted("llama"), torch.tensor([[1, 9, 40, 6]])
    embedded = tiny_llama.original_model.get_input_embeddings()(ids)
    with (
        torch.inference_mode(),
        steer(tiny_llama, calibration, RotateBy(ANGLE), positions=LastPrompt(2)),
    ):
        assert torch.equal(tiny_llama(embedded), tiny_llama(ids))


# --- Strengths per row, sweeps -------------------------------------------------------------------


@pytest.mark.parametrize("positions", [GeneratedOnly(), LastPrompt(3)], ids=repr)
@pytest.mark.parametrize("stream", ["ln2_out", "resid_mid"])
def test_one_angle_per_row_equals_a_loop_over_rows(
    positions: Positions,
    stream: str,
    tiny_llama: TransformerBridge,
    oracles: dict[str, HuggingFaceOracle],
    fitted: Fitted,
) -> None:
    calibration = fitted("llama", stream)
    rows = [oracles["llama"].ids(prompt) for prompt in PROMPTS]
    angles = [0.0, 75.0, 200.0]
    with steer(tiny_llama, calibration, RotateBy(angles), positions=positions):
        together = torch.stack(decoded(tiny_llama, rows, "left", told=True))
    for row, angle in enumerate(angles):
        with steer(tiny_llama, calibration, RotateBy(angle), positions=positions):
            alone = torch.stack(decoded(tiny_llama, rows[row : row + 1], "left", told=True))
        assert relative_error(together[:, row], alone[:, 0]) < TOLERANCE


def test_a_sweep_of_some_positions_equals_one_steered_run_per_angle(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, angles = fitted("llama"), [0.0, 60.0, 200.0]
    table = sweep_angles(
        tiny_llama,
        calibration,
        RotateBy,
        PROMPTS,
        angles,
        max_new_tokens=7,
        batch_rows=4,
        positions=GeneratedOnly(),
    )
    for angle, rows in table.groupby("angle_deg"):
        with steer(tiny_llama, calibration, RotateBy(float(angle)), positions=GeneratedOnly()):
            texts = generate(tiny_llama, PROMPTS, max_new_tokens=7)
        assert rows.sort_values("prompt_index")["response"].tolist() == texts


# --- The values and their errors -----------------------------------------------------------------


@pytest.mark.parametrize("positions", EVERY, ids=repr)
def test_positions_are_values_that_are_read_back_from_their_text(positions: Positions) -> None:
    assert read_value(repr(positions), get_args(Positions), "positions") == positions


@pytest.mark.parametrize("k", [0, -2])
def test_the_number_of_last_prompt_tokens_is_a_whole_number_of_at_least_one(k: int) -> None:
    with pytest.raises(UserError, match=rf"k must be a whole number from 1 on; got {k}"):
        LastPrompt(k=k)


@pytest.mark.parametrize("shape", [(1, 3), (1, 5), (2, 4), (1, 1, 4, 4)])
def test_a_mask_that_does_not_cover_the_tokens_is_an_error(
    shape: tuple[int, ...], tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    message = r"attention mask has shape .*padding cannot be told; expected \(1, 4\)"
    with (
        pytest.raises(UserError, match=message),
        steer(tiny_llama, fitted("llama"), RotateBy(ANGLE), positions=PromptOnly()),
    ):
        tiny_llama(torch.tensor([[1, 9, 40, 6]]), attention_mask=torch.ones(shape))


def test_a_block_called_by_itself_has_no_positions(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    message = r"PromptOnly\(\) cannot be told outside of a forward pass of the whole model"
    with steer(tiny_llama, fitted("llama"), RotateBy(ANGLE), positions=PromptOnly()):
        tiny_llama(torch.tensor([[1, 9, 40, 6]]))
        with pytest.raises(UserError, match=message):
            tiny_llama.blocks[0].ln1(torch.zeros(1, 4, 32))


def test_all_hooks_are_gone_after_the_block_and_after_an_error_in_it(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    before, inside = hooks_on(tiny_llama), []

    def stop(h: Tensor, hook: object) -> None:
        inside.append(hooks_on(tiny_llama))
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        steer(tiny_llama, fitted("llama"), RotateBy(ANGLE), positions=PromptOnly()),
        tiny_llama.hooks(fwd_hooks=[("blocks.1.ln1.hook_out", stop)]),
    ):
        tiny_llama(torch.tensor([[1, 9, 40, 6]]))
    assert inside[0][1:] == (before[1] + 1, before[2] + 1)
    assert hooks_on(tiny_llama) == before


# --- Cost ----------------------------------------------------------------------------------------


class CountedOperations(TorchDispatchMode):
    """How many tensor operations run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_steering_all_positions_runs_the_operator_and_nothing_else(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, operator = fitted("llama"), RotateBy(ANGLE)
    ids, h, before = torch.tensor([[1, 9, 40, 6]]), torch.zeros(1, 4, 32), hooks_on(tiny_llama)

    def operations(run: Callable[[], object]) -> int:
        with torch.no_grad(), CountedOperations() as counted:
            run()
        return counted.count

    plain = operations(lambda: tiny_llama(ids))
    each = operations(lambda: operator.apply(h, calibration.plane))
    with steer(tiny_llama, calibration, operator):
        assert hooks_on(tiny_llama)[1:] == before[1:]
        steered = operations(lambda: tiny_llama(ids))
    assert steered == plain + each * len(calibration.selected_sites)


def test_a_prompt_pass_costs_nothing_where_only_what_is_generated_is_steered(
    tiny_llama: TransformerBridge, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[tuple[int, ...]] = []
    apply = RotateBy.apply

    def counted(self: RotateBy, h: Tensor, plane: object) -> Tensor:
        applied.append(tuple(h.shape))
        return apply(self, h, plane)

    calibration = fitted("llama", "ln1_out")
    monkeypatch.setattr(RotateBy, "apply", counted)
    with steer(tiny_llama, calibration, RotateBy(ANGLE), positions=GeneratedOnly()):
        decoded(tiny_llama, [torch.tensor([[1, 9, 40]])], "left", told=True)
    assert applied == [(1, 1, 32)] * len(calibration.selected_sites) * len(ANSWER)
