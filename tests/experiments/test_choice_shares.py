"""How often an angle is chosen equals choosing again and again; KL on negative prompts counts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ss_lens import AngleChoice, AngleCriterion, SweepConfig, UserError, choose_angle
from ss_lens.stats import choice_shares
from ss_lens.stats.bootstrap import best_shares, resampled_counts, resampled_means
from ss_lens.stats.choice_shares import scan_shares, shares_by_score

LEAST = AngleCriterion(
    score="refusal_score", goal="minimise", max_perplexity=20, max_repetition=None
)


def dev_rows(seed: int, angles: tuple[float, ...] = (0.0, 90.0, 270.0), n: int = 6) -> pd.DataFrame:
    """Scores that overlap between angles, some collapsed answers, a KL that grows with the turn."""
    rng = np.random.default_rng(seed)
    rows = []
    for label in ("positive", "negative"):
        for index in range(n):
            for angle in angles:
                rows.append(
                    {
                        "part": "dev",
                        "prompt_class": label,
                        "prompt_index": index,
                        "prompt": f"{label} {index}",
                        "angle_deg": angle,
                        "refusal_score": rng.normal(-angle / 360, 1.0),
                        "perplexity": 50.0 if angle == 270 and rng.random() < 0.12 else 5.0,
                        "kl_mean": angle / 360 + 0.2 * rng.random(),
                        "empty": False,
                        "loop": False,
                    }
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("limit", [None, 0.87])
@pytest.mark.parametrize("goal", ["minimise", "maximise"])
def test_the_share_of_an_angle_is_how_often_the_choice_falls_on_it(
    limit: float | None, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same resamples, written out as tables and chosen from one by one."""
    monkeypatch.setattr(choice_shares, "N_RESAMPLES", 20)
    table = dev_rows(3)
    criterion = AngleCriterion(**{**vars(LEAST), "goal": goal, "max_negative_kl": limit})
    shares = choose_angle(table, criterion).dev.set_index("angle_deg")["share"]
    counts = {label: choice_shares._counts(6, 0, label) for label in ("positive", "negative")}
    monkeypatch.setattr(choice_shares, "N_RESAMPLES", 1)
    chosen = []
    for draw in range(20):
        parts = []
        for label, drawn in counts.items():
            of_class = table.query("prompt_class == @label")
            picked = [i for i, count in enumerate(drawn[draw]) for _ in range(int(count))]
            for place, index in enumerate(picked):
                rows = of_class.loc[of_class["prompt_index"] == index]
                parts.append(rows.assign(prompt_index=place, prompt=f"{label} {place}"))
        chosen.append(choose_angle(pd.concat(parts), criterion).angle_deg)
    for angle, share in shares.items():
        assert share == pytest.approx(np.mean([one == angle for one in chosen]))
    assert shares.sum() == pytest.approx(np.mean([one is not None for one in chosen]))
    assert 0 < shares.max() < 1


def test_a_clear_winner_is_always_chosen_and_equal_ones_take_turns() -> None:
    scores = {
        "far": pd.Series([-9.0, -9.5, -8.7, -9.2]),
        "near": pd.Series([0.1, -0.3, 0.2, 0.0]),
    }
    assert shares_by_score(scores, lowest=True) == {"far": 1.0, "near": 0.0}
    assert shares_by_score(scores, lowest=False) == {"far": 0.0, "near": 1.0}
    rng = np.random.default_rng(0)
    one = pd.Series(rng.normal(size=40))
    found = shares_by_score({"one": one, "mirror": -one + 2 * one.mean()}, lowest=True)
    assert found["one"] == pytest.approx(0.5, abs=0.06)
    same = shares_by_score({"first": one, "second": one}, lowest=True)
    assert same == {"first": 1.0, "second": 0.0}  # ties go to the first
    assert shares_by_score({}, lowest=True) == {}


def test_a_scan_counts_its_class_without_what_is_barred() -> None:
    table = dev_rows(1, angles=(0.0, 45.0, 315.0))
    found = scan_shares(table, "refusal_score", "positive", lowest=True, barred=(0.0,))
    assert [*found] == [45.0, 315.0]
    assert sum(found.values()) == pytest.approx(1)
    table.loc[table["angle_deg"] == 45, "refusal_score"] -= 100
    assert scan_shares(table, "refusal_score", "positive", lowest=True)[45.0] == 1
    without = scan_shares(table, "refusal_score", "positive", lowest=True, barred=[45.0])
    assert 45.0 not in without


def test_undefined_values_are_left_out_of_the_means_of_resamples() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0]])
    counts = np.array([[1, 1, 1], [0, 3, 0], [0, 0, 3]])
    means = resampled_means(values, counts)
    np.testing.assert_allclose(means, [[2.0, 5.0], [3.0, np.nan], [np.nan, 5.0]])
    assert best_shares(means, lowest=True).tolist() == [2 / 3, 1 / 3]
    assert best_shares(np.full((4, 2), np.nan), lowest=True).tolist() == [0, 0]
    assert resampled_counts(np.ones(5, dtype=int), 7, np.random.default_rng(0)).sum() == 35


def test_an_angle_that_moves_negative_prompts_too_far_is_not_admissible() -> None:
    table = dev_rows(2, angles=(90.0, 180.0))
    table["refusal_score"] = -table["angle_deg"]
    assert choose_angle(table, LEAST).angle_deg == 180
    limited = AngleCriterion(**{**vars(LEAST), "max_negative_kl": 0.45})
    choice = choose_angle(table, limited)
    assert choice.angle_deg == 90
    assert choice.dev["admissible"].tolist() == [True, False]
    own = table.query("prompt_class == 'negative' and angle_deg == 90")["kl_mean"].mean()
    assert choice.dev["negative_kl"].iloc[0] == pytest.approx(own)
    assert "90° of 1 admissible angles" in str(choice)
    assert str(choice).endswith("chosen in 100% of the resamples of dev")
    none = choose_angle(table, AngleCriterion(**{**vars(LEAST), "max_negative_kl": 0.01}))
    assert none.angle_deg is None
    assert str(none).startswith(
        "no admissible angle of 2: at best 0.00 of the dev answers have collapsed, 0.1 may, and at "
        "best the predictions on negative prompts move by 0."
    )
    with pytest.raises(UserError, match="no column kl_mean"):
        choose_angle(table.drop(columns="kl_mean"), limited)
    with pytest.raises(UserError, match=r"max_negative_kl must be a finite number above 0; got 0"):
        AngleCriterion(**{**vars(LEAST), "max_negative_kl": 0})


def test_a_choice_of_an_earlier_version_is_read_without_shares() -> None:
    choice = choose_angle(dev_rows(4), LEAST)
    stored: dict[str, Any] = json.loads(json.dumps(choice.as_json(), allow_nan=False))
    pd.testing.assert_frame_equal(AngleChoice.from_json(stored).dev, choice.dev)
    del stored["criterion"]["max_negative_kl"]
    for row in stored["dev"]:
        del row["share"], row["negative_kl"]
    earlier = AngleChoice.from_json(stored)
    assert earlier.criterion == LEAST
    assert earlier.angle_deg == choice.angle_deg
    assert "resamples" not in str(earlier)


def test_a_sweep_that_limits_the_divergence_must_measure_it() -> None:
    choose = {**vars(LEAST), "max_negative_kl": 0.3}
    grid = {"model": "m", "dataset": "refusal", "angles_deg": [0, 90]}
    told: dict[str, Any] = {"grid": grid, "choose": choose, "parts": ["dev"]}
    scores = ["answers", "perplexity", "refusal_score"]
    with pytest.raises(UserError, match=r"limits the KL on negative prompts; add kl to scores"):
        SweepConfig(**told, scores=scores)
    with pytest.raises(UserError, match=r"and negative to prompt_class"):
        SweepConfig(**told, scores=[*scores, "kl"], prompt_class=["positive"])
    assert "kl" in SweepConfig(**told, scores=[*scores, "kl"]).scores_of("dev")
    without = {**told, "choose": vars(LEAST)}
    assert "kl" not in SweepConfig(**without, scores=[*scores, "kl"]).scores_of("dev")
