"""Conversations under steering: what is read, what is steered, and what has moved."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.conversations import figure, findings, measure, summarise
from analyses.conversations.__main__ import SCRIPT
from ss_lens import Calibration, ContrastiveDataset, GeneratedOnly, RotateBy, UserError, steer
from ss_lens.datasets.readers import read_lines
from ss_lens.scoring.refusal_score import refusal_score

OPERATOR = RotateBy(120)
TURNS = ["is it", "so what"]
PROBES = ["why", "how so"]


@pytest.fixture
def model(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


@pytest.fixture
def calibration(model: TransformerBridge, tiny_data: ContrastiveDataset) -> Calibration:
    return ss_lens.calibrate(ss_lens.capture(model, tiny_data), rule="uniform")


def by_place(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index(["condition", "turn", "probe"]).sort_index()


def test_conversations_equal_those_that_are_led_by_hand(
    model: TransformerBridge, calibration: Calibration
) -> None:
    table = by_place(measure(model, calibration, OPERATOR, TURNS, PROBES, max_new_tokens=4))

    def led(condition: str) -> list[list[float]]:
        history, scores = [], []
        for said in (None, *TURNS):
            if said is not None:
                history.append({"role": "user", "content": said})
                positions = GeneratedOnly() if condition == "on the answer only" else None
                if condition == "off":
                    (answer,) = ss_lens.generate(model, [history], max_new_tokens=4)
                elif positions is None:
                    with steer(model, calibration, OPERATOR):
                        (answer,) = ss_lens.generate(model, [history], max_new_tokens=4)
                else:
                    with steer(model, calibration, OPERATOR, positions=positions):
                        (answer,) = ss_lens.generate(model, [history], max_new_tokens=4)
                history.append({"role": "assistant", "content": answer if answer.strip() else ""})
            asked = [[*history, {"role": "user", "content": probe}] for probe in PROBES]
            if condition == "always on":
                with steer(model, calibration, OPERATOR):
                    found = refusal_score(model, asked)
            else:
                found = refusal_score(model, asked)
            scores.append(found["refusal_score"].tolist())
        return scores

    for condition in ("off", "always on", "on the answer only"):
        for turn, expected in enumerate(led(condition)):
            got = table.loc[(condition, turn)]["refusal_score"].tolist()
            assert got == pytest.approx(expected, abs=1e-4)
    # Before the conversation nothing is generated yet, so only steering of the prompt is felt.
    before = table["refusal_score"].unstack("condition").loc[0]
    assert before["on the answer only"].tolist() == before["off"].tolist()
    assert (before["always on"] - before["off"]).abs().min() > 1e-4
    assert (table["n_tokens"].unstack("turn").diff(axis=1)[[1, 2]] > 0).all().all()


def test_an_operator_that_is_the_identity_leaves_all_three_conversations_alike(
    model: TransformerBridge, calibration: Calibration
) -> None:
    table = measure(model, calibration, RotateBy(0), TURNS, PROBES, max_new_tokens=3)
    parts = [part.drop(columns="condition").reset_index(drop=True)
             for _, part in table.groupby("condition", sort=False)]  # fmt: skip
    for other in parts[1:]:
        pd.testing.assert_frame_equal(parts[0], other)
    summary = summarise(table)
    assert (summary["norm_ratio"] == 1).all()


def test_what_has_moved_is_counted_from_before_the_conversation() -> None:
    rows = [
        {"condition": condition, "turn": turn, "probe": probe, "refusal_score": score,
         "opening_mass": 0.9, "norm": norm, "n_tokens": 10 * (turn + 1), "repetition": math.nan}
        for condition, scores, norms in (
            ("off", (2.0, 2.0), (4.0, 5.0)), ("always on", (-1.0, 0.5), (4.0, 10.0)),
        )
        for turn, (score, norm) in enumerate(zip(scores, norms, strict=True))
        for probe in range(3)
    ]  # fmt: skip
    table = summarise(pd.DataFrame(rows)).set_index(["condition", "turn"])
    assert table["moved"].to_dict() == {
        **{("off", 0): 0, ("off", 1): 0, ("always on", 0): 0, ("always on", 1): 1.5}
    }
    assert table.loc[("always on", 1), "norm_ratio"] == 2
    said = findings(table.reset_index())
    assert said[0].startswith("off: after 1 turns (20 tokens) the score is +2.00 nats, +0.00")
    assert "not told from no change" in said[0]
    assert "+1.50 [+1.50, +1.50]" in said[1]
    assert "the norm is 2.00 [2.00, 2.00] times" in said[1]
    names = [trace.name for trace in figure(table.reset_index()).data if trace.showlegend]
    assert names[:2] == ["steering off", "steering always on"]


def test_a_conversation_of_nothing_is_refused(
    model: TransformerBridge, calibration: Calibration
) -> None:
    with pytest.raises(UserError, match="script is empty; give at least one turn"):
        measure(model, calibration, OPERATOR, [], PROBES)
    with pytest.raises(UserError, match="probes is empty"):
        measure(model, calibration, OPERATOR, TURNS, [])
    assert len(read_lines(SCRIPT)) == 10
