"""The angle is chosen on dev under constraints; test is read there and decides nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from ss_lens import UserError
from ss_lens.experiments.choose_angle import AngleChoice, AngleCriterion, choose_angle
from ss_lens.stats.intervals import wilson_interval

LEAST = AngleCriterion(
    score="refusal_score", goal="minimise", max_perplexity=20, max_repetition=0.5, max_collapsed=0.3
)
MOST = AngleCriterion(
    score="refusal_score", goal="maximise", max_perplexity=20, max_repetition=0.5, max_collapsed=0.3
)


def rows(part: str, by_angle: dict[float, float], **others: Any) -> pd.DataFrame:
    """Four prompts of each class per angle, whose scores of the positive class average to it."""
    made = []
    for label in ("positive", "negative"):
        for index in range(4):
            for angle, mean in by_angle.items():
                score = mean + (index - 1.5) if label == "positive" else -100.0 * angle
                made.append(
                    {
                        "part": part,
                        "prompt_class": label,
                        "prompt_index": index,
                        "prompt": f"{part} {label} {index}",
                        "angle_deg": float(angle),
                        "refusal_score": score,
                        "refused": score > 0,
                        "perplexity": 5.0,
                        "repetition": 0.1,
                        "empty": False,
                        "loop": False,
                        **others,
                    }
                )
    return pd.DataFrame(made)


def test_a_planted_leak_is_not_followed_the_dev_choice_is_reported() -> None:
    """Test is best at 180°, dev at 90°: the report is of 90°, however bad it is on test."""
    dev, test = {0: 1.0, 90: -3.0, 180: 0.0}, {0: 1.0, 90: 2.0, 180: -9.0}
    choice = choose_angle(pd.concat([rows("dev", dev), rows("test", test)]), LEAST)
    assert choice.angle_deg == 90
    assert choice.test["angle_deg"].tolist() == [90.0]
    assert choice.test["score"].tolist() == [2.0]
    assert choice.dev["score"].tolist() == [1.0, -3.0, 0.0]
    assert str(choice).startswith("90° of 3 admissible angles: refusal_score -3 on dev, 2 [")


@given(
    st.lists(st.floats(-9, 9), min_size=3, max_size=3),
    st.lists(st.floats(-9, 9), min_size=3, max_size=3),
)
def test_whatever_test_says_the_choice_is_that_of_dev_alone(
    dev: list[float], test: list[float]
) -> None:
    angles = (0.0, 120.0, 240.0)
    seen = rows("dev", dict(zip(angles, dev, strict=True)))
    unseen = rows("test", dict(zip(angles, test, strict=True)))
    alone = choose_angle(seen, LEAST)
    both = choose_angle(pd.concat([unseen, seen]), LEAST)
    assert alone.angle_deg == both.angle_deg
    pd.testing.assert_frame_equal(alone.dev, both.dev)
    assert alone.test.empty
    assert both.test["angle_deg"].tolist() == [alone.angle_deg]


def test_maximising_takes_the_other_end() -> None:
    table = rows("dev", {0: 1.0, 90: -3.0, 180: 4.0})
    assert choose_angle(table, LEAST).angle_deg == 90
    assert choose_angle(table, MOST).angle_deg == 180


@pytest.mark.parametrize(
    "damage",
    [
        {"perplexity": 21.0},
        {"repetition": 0.6},
        {"empty": True, "perplexity": np.nan, "repetition": np.nan},
        {"loop": True, "repetition": np.nan},
    ],
    ids=["perplexity", "repetition", "empty", "loop"],
)
def test_the_best_angle_is_passed_over_where_its_answers_collapse(damage: dict[str, Any]) -> None:
    table = rows("dev", {0: 1.0, 90: -9.0, 180: -3.0}).astype(
        {"perplexity": float, "repetition": float}
    )
    at = (table["angle_deg"] == 90) & (table["prompt_index"] < 2)  # half of its answers
    table.loc[at, [*damage]] = [*damage.values()]
    choice = choose_angle(table, LEAST)
    assert choice.angle_deg == 180
    assert choice.dev["collapsed"].tolist() == [0.0, 0.5, 0.0]
    assert choice.dev["admissible"].tolist() == [True, False, True]


def test_a_share_of_collapsed_answers_at_the_limit_is_admissible() -> None:
    table = rows("dev", {0: 1.0, 90: -9.0})
    table.loc[(table["angle_deg"] == 90) & (table["prompt_index"] == 0), "perplexity"] = 99.0
    at_limit = AngleCriterion(**{**vars(LEAST), "max_collapsed": 0.25})
    below = AngleCriterion(**{**vars(LEAST), "max_collapsed": 0.24})
    assert choose_angle(table, at_limit).angle_deg == 90
    assert choose_angle(table, below).angle_deg == 0


def test_an_undefined_score_does_not_speak_against_an_answer() -> None:
    """Short answers have no repetition, which is not a repetition beyond the limit."""
    table = rows("dev", {0: 1.0, 90: -9.0}, repetition=np.nan)
    assert choose_angle(table, LEAST).angle_deg == 90


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ((90, 30, 180), 30),
        ((20, 350, 180), 350),
        ((300, 60), 60),
        ((-30, 200), 330),
        ((360, 10), 0),
    ],
)
def test_ties_go_to_the_angle_nearest_to_zero_on_the_circle(
    angles: tuple[int, ...], expected: float
) -> None:
    assert choose_angle(rows("dev", dict.fromkeys(angles, -1.0)), LEAST).angle_deg == expected


def test_no_admissible_angle_is_a_stated_result() -> None:
    table = pd.concat([rows(part, {0: 1.0, 90: 2.0}, perplexity=30.0) for part in ("dev", "test")])
    choice = choose_angle(table, LEAST)
    assert choice.angle_deg is None
    assert choice.test.empty
    assert str(choice) == (
        "no admissible angle of 2: at best 1.00 of the dev answers have collapsed, 0.3 may"
    )


def test_an_angle_without_any_score_is_not_admissible() -> None:
    table = rows("dev", {0: 1.0, 90: -9.0})
    table.loc[table["angle_deg"] == 90, "refusal_score"] = np.nan
    assert choose_angle(table, LEAST).angle_deg == 0


def test_intervals_are_wilsons_for_rates_and_hold_the_mean_for_scores() -> None:
    table = pd.concat([rows(part, {0: 0.0, 90: -9.0}) for part in ("dev", "test")])
    rate = AngleCriterion(**{**vars(MOST), "score": "refused"})
    shown = choose_angle(table, rate).test.iloc[0]
    assert (shown["low"], shown["high"]) == wilson_interval(2, 4)
    assert (shown["score"], shown["n_scored"], shown["n_answers"]) == (0.5, 4, 8)
    mean = choose_angle(table, MOST).test.iloc[0]
    assert mean["low"] < mean["score"] < mean["high"]
    assert (mean["low"], mean["high"]) == pytest.approx((-1.0, 1.0), abs=0.4)


def test_a_choice_is_stored_with_all_its_dev_numbers_and_reads_back() -> None:
    table = pd.concat(
        [rows(part, {0: 1.0, 90: -3.0}, repetition=np.nan) for part in ("dev", "test")]
    )
    for criterion in (LEAST, AngleCriterion(**{**vars(LEAST), "max_perplexity": 1.5})):
        choice = choose_angle(table, criterion)
        read = AngleChoice.from_json(json.loads(json.dumps(choice.as_json(), allow_nan=False)))
        assert read.criterion == criterion
        assert read.angle_deg == choice.angle_deg
        pd.testing.assert_frame_equal(read.dev, choice.dev)
        pd.testing.assert_frame_equal(read.test, choice.test)


DEV = rows("dev", {0: 1.0, 90: -3.0})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows("test", {0: 1.0}), "no dev rows of positive prompts.*luck of the choice"),
        (DEV.query("prompt_class == 'negative'"), "no dev rows of positive prompts"),
        (DEV.drop(columns="refusal_score"), "no column refusal_score; it has part, prompt_class"),
        (DEV.drop(columns="perplexity"), "no column perplexity"),
        (pd.concat([DEV, DEV]), "several rows of one prompt at one angle"),
        (rows("dev", {0: 1.0, 360: 1.0}), r"at one angle \(0 and 360 degrees are one\)"),
        (pd.concat([DEV, rows("test", {0: 1.0})]), "dev chooses 90°, which test was not measured"),
        (pd.concat([DEV, DEV.assign(part="test")]), "'dev negative 0' is in dev and in test"),
    ],
)
def test_a_table_that_would_leak_or_lacks_something_is_an_error(
    table: pd.DataFrame, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_angle(table, LEAST)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"score": "happiness"}, "score must be one of refusal_score, .*; got 'happiness'"),
        ({"goal": "best"}, "goal must be one of minimise, maximise; got 'best'"),
        ({"prompt_class": "harmful"}, "prompt_class must be one of positive, negative"),
        ({"max_collapsed": 1.5}, "max_collapsed is a share, between 0 and 1; got 1.5"),
        ({"max_collapsed": True}, "max_collapsed is a share"),
        ({"max_repetition": 2}, "max_repetition is a share"),
        ({"max_perplexity": 0.5}, "max_perplexity must be at least 1"),
    ],
)
def test_a_criterion_out_of_range_is_an_error(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AngleCriterion(**{**vars(LEAST), **wrong})
