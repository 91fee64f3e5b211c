"""What generation refuses: other types, logits that are not finite, a steered baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import RotateBy, RotateTo, UserError, generate, steer, sweep_angles
from ss_lens.scoring.refusal_score import sweep_refusal_score
from tests.generation.conftest import Fitted

PROMPTS = ["w50 w51 w52", "w12", "w9 w70"]


@pytest.fixture
def untyped() -> Iterator[None]:
    """Without the shape checks of the tests, which would object first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"max_new_tokens": 4.5},
            r"max_new_tokens must be a whole number of at least 1; got 4\.5\. Write an integer",
        ),
        ({"max_new_tokens": "8"}, "max_new_tokens must be a whole number of at least 1; got '8'"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number of at least 1; got True"),
        ({"batch_size": 2.0}, r"batch_size must be a whole number of at least 1; got 2\.0"),
        ({"batch_size": None}, "batch_size must be a whole number of at least 1; got None"),
        ({"temperature": "hot"}, "temperature must be 0 or a positive number; got 'hot'"),
        ({"temperature": 1e-320}, "temperature must be 0 or at least 1e-30; got 1e-320.*greedy"),
        ({"temperature": None}, "temperature must be 0 or a positive number; got None"),
        ({"seed": None}, "seed must be a whole number such as 0; got None"),
        ({"seed": 0.5}, r"seed must be a whole number such as 0; got 0\.5"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_value_of_another_type_is_named(
    wrong: dict[str, object], message: str, tiny_llama: TransformerBridge
) -> None:
    with pytest.raises(UserError, match=message):
        generate(tiny_llama, PROMPTS, **wrong)


@pytest.mark.usefixtures("untyped")
def test_a_prompt_that_is_no_text_is_named(tiny_llama: TransformerBridge) -> None:
    for prompts in ([None], ["w12", 5]):
        with pytest.raises(UserError, match=r"prompt [01] .*(None|5)"):
            generate(tiny_llama, prompts)


@pytest.mark.usefixtures("untyped")
def test_swapped_arguments_are_named(tiny_llama: TransformerBridge, fitted: Fitted) -> None:
    with pytest.raises(
        UserError, match=r"model must be a model from ss_lens\.load_model\(\.\.\.\)"
    ):
        generate(PROMPTS, tiny_llama)
    calibration = fitted("llama", 1)
    with pytest.raises(UserError, match="model must be a model"):
        sweep_angles(calibration, tiny_llama, RotateBy, PROMPTS, [0])
    with pytest.raises(UserError, match="calibration must be a calibration"):
        sweep_angles(tiny_llama, "runs/x", RotateBy, PROMPTS, [0])


def test_whole_numbers_of_numpy_are_taken(tiny_llama: TransformerBridge) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        texts = generate(tiny_llama, PROMPTS, max_new_tokens=np.int64(2), batch_size=np.int32(2))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert texts == generate(tiny_llama, PROMPTS, max_new_tokens=2)


def spoilt(value: float, row: int = 0):
    """A hook that puts ``value`` into the logits of one row."""

    def hook(logits: Tensor, hook: object) -> Tensor:
        changed = logits.clone()
        changed[row, :, 7] = value
        return changed

    return [("unembed.hook_out", hook)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_finite_end_in_one_line_at_any_temperature(
    value: float, temperature: float, tiny_llama: TransformerBridge
) -> None:
    message = r"1 of 3 rows of logits of .* are not finite, expected finite numbers.*float32"
    with tiny_llama.hooks(fwd_hooks=spoilt(value)), pytest.raises(UserError, match=message):
        generate(tiny_llama, PROMPTS, max_new_tokens=3, temperature=temperature)


def test_a_masked_token_is_no_defect(tiny_llama: TransformerBridge) -> None:
    with tiny_llama.hooks(fwd_hooks=spoilt(-math.inf)):
        texts = generate(tiny_llama, PROMPTS, max_new_tokens=3)
    assert all("w7" not in text.split() for text in texts[:1])


def test_a_sweep_and_first_token_scores_refuse_logits_that_are_not_finite(
    tiny_llama: TransformerBridge, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ss_lens.scoring.refusal_score.REFUSAL_OPENINGS", ("w20",))
    monkeypatch.setattr("ss_lens.scoring.refusal_score.COMPLIANCE_OPENINGS", ("w30",))
    sweeps = (partial(sweep_angles, max_new_tokens=3), sweep_refusal_score)
    for sweep in sweeps:
        with (
            tiny_llama.hooks(fwd_hooks=spoilt(math.nan)),
            pytest.raises(UserError, match=r"rows of logits of .* are not finite"),
        ):
            sweep(tiny_llama, fitted("llama", 1), RotateBy, PROMPTS, [0, 60])


# --- The unsteered row ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [2, 48])
def test_the_unsteered_row_comes_first_and_is_plain_generation(
    batch_rows: int, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    """The 0° of an absolute angle is steered; the row without an angle is not."""
    options = {"max_new_tokens": 5, "batch_rows": batch_rows}
    arguments = (tiny_llama, fitted("llama", 0), RotateTo, PROMPTS, [0, 90])
    table = sweep_angles(*arguments, **options, unsteered=True)
    assert table["prompt_index"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert table["prompt_index"].dtype == "int64"
    plain = table[table["angle_deg"].isna()]
    assert plain.index.tolist() == [0, 3, 6]
    assert plain["prompt"].tolist() == PROMPTS
    assert plain["response"].tolist() == generate(tiny_llama, PROMPTS, max_new_tokens=5)
    steered = table.dropna(subset="angle_deg").reset_index(drop=True)
    assert steered.equals(sweep_angles(*arguments, **options))
    at_zero = steered.query("angle_deg == 0")["response"].tolist()
    assert at_zero != plain["response"].tolist()


def test_no_prompt_has_no_unsteered_row(tiny_llama: TransformerBridge, fitted: Fitted) -> None:
    table = sweep_angles(tiny_llama, fitted("llama", 1), RotateBy, [], [0], unsteered=True)
    assert table.empty
    assert list(table) == ["prompt_index", "prompt", "angle_deg", "response"]


def test_unsteered_rows_are_refused_where_they_would_be_steered(
    tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    calibration = fitted("llama", 1)
    with (
        steer(tiny_llama, calibration, RotateBy(40)),
        pytest.raises(UserError, match=r"unsteered=True needs a model without hooks.*Leave that"),
    ):
        sweep_angles(tiny_llama, calibration, RotateBy, PROMPTS, [0], unsteered=True)


def test_logits_are_looked_at_once_per_step(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ss_lens.generation import loop

    seen: list[torch.Size] = []
    monkeypatch.setattr(loop, "check_logits", lambda model, logits: seen.append(logits.shape))
    generate(tiny_llama, PROMPTS[:1], max_new_tokens=3)
    assert 1 <= len(seen) <= 3
