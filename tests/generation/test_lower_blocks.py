"""What sweeps over the same prompts share through the blocks below their edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import Calibration, RotateBy, RotateTo, steer
from ss_lens.generation.angle_batch import Angled, sweep_first_logits
from ss_lens.generation.lower_blocks import LowerBlocks
from tests.conftest import ARCHITECTURES
from tests.generation.conftest import SITES, Fitted
from tests.generation.test_reuse import ANGLES, DISTINCT, PROMPTS, ROWS, counted_rows


def swept(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    lower: LowerBlocks | None,
    prompts: Sequence[str] = PROMPTS,
    **options: Any,
) -> np.ndarray:
    def measure(logits: Tensor) -> dict[str, Sequence[Any]]:
        return {"logits": [*logits.numpy()]}

    table = sweep_first_logits(
        model, calibration, operator, prompts, ANGLES, measure, ["logits"], lower=lower, **options
    )
    return np.stack([*table["logits"]])


@pytest.mark.parametrize("first", SITES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sweeps_that_share_lower_blocks_give_the_same_bits_as_sweeps_apart(
    architecture: str, first: int, tiny_models: dict[str, TransformerBridge], fitted: Fitted
) -> None:
    model, calibration, lower = (
        tiny_models[architecture],
        fitted(architecture, first),
        LowerBlocks(),
    )
    for operator in (RotateBy, RotateTo, RotateBy):
        apart = swept(model, calibration, operator, None)
        assert np.array_equal(swept(model, calibration, operator, lower), apart)
    other = fitted(architecture, 1)
    assert np.array_equal(swept(model, other, RotateTo, lower), swept(model, other, RotateTo, None))


@pytest.mark.parametrize("batch_rows", [4, 100])
def test_other_prompts_and_other_batches_get_streams_of_their_own(
    batch_rows: int, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, lower = fitted("llama", 1), LowerBlocks()
    for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS[:3], ["w9 w70 w34", *PROMPTS[1:]]):
        options: dict[str, Any] = {"prompts": prompts, "batch_rows": batch_rows}
        apart = swept(tiny_llama, calibration, RotateBy, None, **options)
        shared = swept(tiny_llama, calibration, RotateBy, lower, **options)
        assert np.array_equal(shared, apart)


def test_the_second_sweep_runs_the_lower_blocks_on_one_row(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, lower = fitted("llama", 2), LowerBlocks()
    found = []
    for _ in range(2):
        with counted_rows(tiny_llama) as passes:
            swept(tiny_llama, calibration, RotateBy, lower)
        found.append([[rows for rows, _ in seen] for seen in passes])
    assert found[0] == [[1, DISTINCT], [1, DISTINCT], [len(ANGLES), ROWS]]
    assert found[1] == [[1, 1], [1, 1], [len(ANGLES), ROWS]]


def test_a_stream_that_does_not_fit_is_computed_each_time(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, lower = fitted("llama", 1), LowerBlocks(room=100)
    apart = swept(tiny_llama, calibration, RotateBy, None)
    for _ in range(2):
        with counted_rows(tiny_llama) as passes:
            assert np.array_equal(swept(tiny_llama, calibration, RotateBy, lower), apart)
        assert [rows for rows, _ in passes[0]] == [1, DISTINCT]


def test_inside_another_edit_nothing_is_taken_from_before(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration, lower = fitted("llama", 2), LowerBlocks()
    plain = swept(tiny_llama, calibration, RotateBy, lower)
    with steer(tiny_llama, fitted("llama", 0), RotateBy(40.0)):
        inside = swept(tiny_llama, calibration, RotateBy, lower)
        apart = swept(tiny_llama, calibration, RotateBy, None)
    assert np.array_equal(inside, apart)
    assert np.abs(inside - plain).max() > 1e-4
    assert np.array_equal(swept(tiny_llama, calibration, RotateBy, lower), plain)


def test_what_is_kept_does_not_change_with_what_a_pass_was_given() -> None:
    given, lower = torch.ones(1, 2, 3), LowerBlocks()
    lower.at("key").taken_or(given)
    given.zero_()
    known = lower.at("key").known
    assert known is not None
    assert torch.equal(known, torch.ones(1, 2, 3))
