"""The refusal score is the log-odds of openings that plain arithmetic on the logits gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, RotateBy, Store, UserError
from ss_lens.scoring import refusal_score as scoring
from tests.oracles import HuggingFaceOracle

REFUSING, COMPLYING = ("w20", "w21"), ("w30", "w31", "w21")
PROMPTS = ("w9 w10 w11", "w12", "w40 w9 w9 w9 w77")


@pytest.fixture(autouse=True)
def openings_in_tiny_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REFUSAL_OPENINGS", REFUSING)
    monkeypatch.setattr(scoring, "COMPLIANCE_OPENINGS", COMPLYING)


def test_a_token_that_opens_both_kinds_counts_as_neither(tiny_llama: TransformerBridge) -> None:
    assert scoring.opening_tokens(tiny_llama) == ([20], [30, 31])


@pytest.mark.parametrize("batch_size", [1, 2, 48])
def test_the_score_equals_the_log_odds_of_one_prompt_at_a_time(
    batch_size: int, tiny_llama: TransformerBridge, tiny_folders: dict
) -> None:
    table = scoring.refusal_score(tiny_llama, PROMPTS, batch_size=batch_size)
    oracle = HuggingFaceOracle(tiny_folders["llama"])
    for row, prompt in zip(table.itertuples(), PROMPTS, strict=True):
        logits = oracle.logits(oracle.ids(prompt))[-1].double()
        p = torch.softmax(logits, dim=-1)
        refuse, comply = p[20], p[30] + p[31]
        assert row.refusal_score == pytest.approx(float(torch.log(refuse / comply)), abs=1e-3)
        assert row.opening_mass == pytest.approx(float(refuse + comply), rel=1e-3)


def test_a_sweep_equals_one_steered_pass_per_angle_and_zero_is_unsteered(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    calibration = ss_lens.calibrate(acts, rule="uniform")
    angles = [0, 70, 200]
    table = scoring.sweep_refusal_score(
        tiny_llama, calibration, RotateBy, PROMPTS, angles, batch_rows=4
    )
    assert table["prompt_index"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for angle in angles:
        with ss_lens.steer(tiny_llama, calibration, RotateBy(angle)):
            expected = scoring.refusal_score(tiny_llama, PROMPTS)["refusal_score"]
        got = table.loc[table["angle_deg"] == angle, "refusal_score"]
        np.testing.assert_allclose(got, expected, atol=1e-3)
    by_angle = table.groupby("angle_deg")["refusal_score"].mean()
    assert by_angle.nunique() == 3


def test_openings_that_the_tokenizer_cannot_tell_apart_are_an_error(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "REFUSAL_OPENINGS", ("w30",))
    with pytest.raises(UserError, match="does not tell refusal openings from compliance openings"):
        scoring.refusal_score(tiny_llama, PROMPTS)


def test_a_batch_size_of_zero_is_an_error(tiny_llama: TransformerBridge) -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        scoring.refusal_score(tiny_llama, PROMPTS, batch_size=0)
