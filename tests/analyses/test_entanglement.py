"""The entanglement report: measured as by its parts, its front as by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.entanglement import (
    Asked,
    angle_figure,
    figure,
    findings,
    front,
    front_figure,
    matrix,
    measure,
)
from analyses.entanglement.__main__ import LOOK_ALIKES
from analyses.entanglement.front import undominated
from analyses.null_bands import SHARE
from analyses.steerability import Question
from ss_lens import ContrastiveDataset, RotateBy, UserError, steer
from ss_lens.datasets.readers import read_lines
from ss_lens.scoring.divergence import kl_divergence
from ss_lens.scoring.refusal_score import refusal_score

KINDS = {
    **{"harmful": ("requests", "nats"), "KL": ("divergence", "nats per token")},
    "capability": ("capability", "share"),
}


def items_of(values: dict[str, dict[float, list[float]]], plane: str = "calibration"):
    """A table of items from means by row and angle; NaN stands for the unsteered model."""
    rows = [
        dict(zip(("row", "kind", "unit"), (row, *KINDS[row]), strict=True))
        | {"plane": plane, "angle_deg": angle, "item": item, "value": value}
        for row, by_angle in values.items()
        for angle, found in by_angle.items()
        for item, value in enumerate(found)
    ]
    return pd.DataFrame(rows)


MADE = items_of(
    {
        "harmful": {
            **{math.nan: [3.0, 1.0, 2.0, 2.0], 45.0: [2.0, 0.0, 1.0, 1.0]},
            **{90.0: [-1.0, -3.0, -2.0, -2.0], 180.0: [-1.0, -2.9, -2.0, -2.0]},
        },
        "KL": {
            **{math.nan: [0.0] * 4, 45.0: [0.1] * 4},
            **{90.0: [0.3, 0.5, 0.4, 0.4], 180.0: [0.6, 0.8, 0.7, 0.7]},
        },
        "capability": {
            **{math.nan: [1.0, 1.0, 0.0, 1.0], 45.0: [1.0, 1.0, 0.0, 1.0]},
            **{90.0: [1.0, 0.0, 0.0, 1.0], 180.0: [0.0, 0.0, 0.0, 1.0]},
        },
    }
)


def test_the_matrix_holds_means_and_paired_changes() -> None:
    table = matrix(MADE).set_index(["row", "angle_deg"])
    assert table.loc[("harmful", 90.0), "mean"] == -2
    assert table.loc[("harmful", 90.0), "change"] == -4
    # Every prompt changes by the same, so there is no doubt about the change.
    assert table.loc[("harmful", 90.0), ["change_low", "change_high"]].tolist() == [-4, -4]
    assert table.loc[("harmful", 90.0), "low"] < -2 < table.loc[("harmful", 90.0), "high"]
    rate = table.loc[("capability", 180.0)]
    assert (rate["mean"], rate["change"]) == (0.25, -0.5)
    assert (rate["low"], rate["high"]) == pytest.approx((0.0456, 0.6994), abs=1e-3)
    unsteered = table[table.index.get_level_values(1).isna()]
    assert (unsteered["change"] == 0).all()


def test_undefined_items_are_counted_and_left_out_and_other_items_refused() -> None:
    some = MADE.copy()
    some.loc[(some["row"] == "KL") & (some["angle_deg"] == 45) & (some["item"] == 0), "value"] = (
        math.nan
    )
    row = matrix(some).set_index(["row", "angle_deg"]).loc[("KL", 45.0)]
    assert (row["undefined"], row["n"], row["mean"]) == (1, 3, pytest.approx(0.1))
    with pytest.raises(UserError, match=r"'harmful' has 3 items at 45° and 4 unsteered"):
        matrix(MADE.drop(MADE[(MADE["angle_deg"] == 45) & (MADE["item"] == 3)].index))
    empty = MADE.assign(value=MADE["value"].where(MADE["row"] != "KL"))
    row = matrix(empty).set_index(["row", "angle_deg"]).loc[("KL", 90.0)]
    assert (row["undefined"], row["n"]) == (4, 0)
    assert row[["mean", "low", "change", "change_high"]].isna().all()
    assert "–" in figure(matrix(empty)).data[0].text[1]
    with pytest.raises(UserError, match=r"no divergence is known, since the unsteered .* empty"):
        front(empty, "harmful", "lower")


def test_the_front_leaves_out_the_angle_that_another_beats_in_everything() -> None:
    table = front(MADE, "harmful", "lower", n_draws=200).set_index("angle_deg")
    assert table["effect"].to_dict() == pytest.approx({45.0: 1.0, 90.0: 4.0, 180.0: 3.975})
    assert table["kl"].to_dict() == pytest.approx({45.0: 0.1, 90.0: 0.4, 180.0: 0.7})
    assert table["capability"].to_dict() == pytest.approx({45.0: 0, 90.0: -0.25, 180.0: -0.5})
    assert table["on_front"].to_dict() == {45.0: True, 90.0: True, 180.0: False}
    assert table["front_share"].to_dict() == {45.0: 1.0, 90.0: 1.0, 180.0: 0.0}
    assert table.loc[90.0, "kl_low"] < 0.4 < table.loc[90.0, "kl_high"]
    raised = front(MADE, "harmful", "raise", n_draws=50).set_index("angle_deg")
    assert raised["on_front"].to_dict() == {45.0: True, 90.0: False, 180.0: False}
    for goal, effect, message in (
        ("up", "harmful", "goal must be one of raise, lower"),
        ("lower", "safe", "one of the sources harmful; got 'safe'"),
    ):
        with pytest.raises(UserError, match=message):
            front(MADE, effect, goal)


def test_a_prompt_without_a_divergence_is_left_out_of_the_front() -> None:
    """As where the unsteered answer is empty; no draw is without any divergence then."""
    lost = (MADE["row"] == "KL") & (MADE["item"] < 3)
    some = MADE.assign(value=MADE["value"].mask(lost & MADE["angle_deg"].notna()))
    table = front(some, "harmful", "lower", n_draws=200).set_index("angle_deg")
    assert table["kl"].to_dict() == pytest.approx({45.0: 0.1, 90.0: 0.4, 180.0: 0.7})
    assert table["kl_low"].notna().all()
    assert table["on_front"].to_dict() == {45.0: True, 90.0: True, 180.0: False}
    assert table["front_share"].to_dict() == {45.0: 1.0, 90.0: 1.0, 180.0: 0.0}


def test_an_angle_is_beyond_the_nulls_where_it_beats_every_random_plane_there() -> None:
    def null(effect: float, place: int) -> pd.DataFrame:
        requests = {angle: [2.0 - effect] * 4 for angle in (45.0, 90.0, 180.0)}
        kl = {angle: [0.1] * 4 for angle in (45.0, 90.0, 180.0)}
        return items_of({"harmful": requests, "KL": kl}, f"random {place}")

    # The four prompts start at 3, 1, 2 and 2, so a null that ends at 2 − e has the effect e.
    items = pd.concat([MADE, null(0.2, 0), null(2.0, 1)], ignore_index=True)
    table = front(items, "harmful", "lower", n_draws=50)
    own = table[table["plane"] == "calibration"].set_index("angle_deg")
    assert own["beyond_nulls"].tolist() == [False, True, True]
    others = table[table["plane"] == "random 1"]
    assert others["effect"].tolist() == pytest.approx([2.0] * 3)
    assert others["capability"].isna().all()
    assert not others["on_front"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = front_figure(table)
    names = {trace.name for trace in drawn.data}
    assert names >= {"on the front", "dominated", "random planes", "95 % interval"}
    said = findings(matrix(items), table)
    assert said[0].startswith("45° is on the front (100% of draws): effect +1.00 nats")
    assert "within the random planes, at KL 0.100, capability +0%" in said[0]
    assert "beyond the random planes, at KL 0.400, capability -25%" in said[1]
    assert "harmful -4.00" in said[1]


def test_the_curves_over_the_angle_have_the_band_of_the_random_planes() -> None:
    def null(effect: float, place: int) -> pd.DataFrame:
        requests = {angle: [2.0 - effect] * 4 for angle in (45.0, 90.0, 180.0)}
        kl = {angle: [effect] * 4 for angle in (45.0, 90.0, 180.0)}
        return items_of({"harmful": requests, "KL": kl}, f"random {place}")

    effects = (0.1, 0.2, 0.3, 0.5)
    items = pd.concat([MADE, *(null(e, i) for i, e in enumerate(effects))], ignore_index=True)
    drawn = angle_figure(matrix(items), "made up")
    assert [a.text for a in drawn.layout.annotations[:2]] == [
        "harmful (nats)",
        "KL (nats per token)",
    ]
    bands = [t for t in drawn.data if t.name == f"random planes, equal energy: {SHARE} of 4 draws"]
    for found, sign in zip(bands, (-1, 1), strict=True):
        ends = np.quantile(sign * np.array(effects), (0.975, 0.025))
        assert [*found.y] == pytest.approx([ends[0]] * 3 + [ends[1]] * 3)
    assert [t.showlegend for t in bands] == [True, False]
    (own,) = [t for t in drawn.data if t.name == "calibration" and t.showlegend]
    assert [*own.x] == [45, 90, 180]
    assert [*own.y] == pytest.approx([-1, -4, -3.975])
    alone = angle_figure(matrix(MADE))
    assert not any("random planes" in str(t.name) for t in alone.data)


def test_no_front_is_larger_than_its_points_and_none_on_it_is_beaten() -> None:
    gains = np.random.default_rng(0).normal(size=(40, 3))
    found = undominated(gains)
    for i, point in enumerate(gains):
        beaten = any((other > point).all() for other in gains)
        assert found[i] == (not beaten)


def test_a_front_of_ties_is_that_of_its_definition() -> None:
    """One point beats another where it is as good in all and better in one; equals do not."""
    gains = np.random.default_rng(1).integers(0, 3, size=(60, 3)).astype(float)
    found = undominated(gains)
    for i, point in enumerate(gains):
        beaten = any((other >= point).all() and (other > point).any() for other in gains)
        assert found[i] == (not beaten)
    assert undominated(np.ones((3, 2))).all()
    assert undominated(np.array([[2.0, -1.0]])).tolist() == [True]


@pytest.fixture
def model(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


def test_each_row_is_what_its_own_measure_says(
    model: TransformerBridge, tiny_data: ContrastiveDataset
) -> None:
    acts = ss_lens.capture(model, tiny_data)
    calibration = ss_lens.calibrate(acts, rule="uniform")
    null = ss_lens.calibrate(acts, plane=ss_lens.RandomPlane(seed=1), rule="uniform")
    asked = Asked(
        sources={"harmful": tiny_data.positive[:3], "free": tiny_data.negative[:4]},
        free="free",
        questions={"odd": [Question("is it", "(A)", "(B)"), Question("or", "(B)", "(A)")]},
        capability_items=0,
        max_new_tokens=6,
    )
    items = measure(model, calibration, RotateBy, asked, [0, 120], nulls=[null])
    table = matrix(items).set_index(["row", "plane", "angle_deg"])
    with steer(model, calibration, RotateBy(120)):
        scores = refusal_score(model, asked.sources["harmful"])
    turned = table.loc[("harmful", "calibration", 120.0)]
    assert turned["mean"] == pytest.approx(scores["refusal_score"].mean(), abs=1e-4)
    mass = table.loc[("harmful: opening mass", "calibration", 120.0)]
    assert mass["mean"] == pytest.approx(scores["opening_mass"].mean(), rel=1e-3)
    texts = ss_lens.generate(model, asked.sources["free"], max_new_tokens=6)
    for plane, made in (("calibration", calibration), ("random 0", null)):
        kl = kl_divergence(model, made, RotateBy(120), asked.sources["free"], texts)["kl_mean"]
        found = table.loc[("KL", plane, 120.0)]
        assert found["mean"] == pytest.approx(kl.mean(), rel=1e-3)
        assert found["undefined"] == kl.isna().sum()
    still = table.xs(0.0, level="angle_deg").dropna(subset="change")
    assert still["change"].to_dict() == pytest.approx(dict.fromkeys(still.index, 0.0), abs=1e-4)
    assert {name for name, *_ in table.index} == {
        *("harmful", "harmful: opening mass", "free", "free: opening mass", "KL", "odd"),
        *("repetition", "empty or looping"),
    }
    drawn = figure(matrix(items), "made up")
    (heat,) = drawn.data
    assert [*heat.x] == ["unsteered", "0°", "120°"]
    assert len(heat.y) == 6
    assert np.nanmax(np.abs(np.array(heat.z, dtype=float))) <= 1
    assert heat.text[0][1].startswith("[")


def test_a_report_without_sources_is_refused() -> None:
    for sources, free in (({}, "a"), ({"a": ()}, "a"), ({"a": ("x",)}, "b")):
        with pytest.raises(UserError, match="measured on sources of prompts"):
            Asked(sources=sources, free=free)


def test_the_look_alikes_are_forty_different_questions() -> None:
    prompts = read_lines(LOOK_ALIKES)
    assert len(prompts) == len(set(prompts)) == 40
    assert all(prompt.endswith("?") for prompt in prompts)
