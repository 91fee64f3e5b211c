"""Drift: principal angles of planes with known ones, and dials as the sweep measures them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.drift import compare, figure, findings, geometry_figure, measure
from analyses.drift.geometry import BETWEEN, WITHIN
from analyses.null_bands import SHARE
from analyses.random_planes import matched_planes
from analyses.site_effects.measures import at_sites
from ss_lens import Calibration, ContrastiveDataset, Plane, RotateBy, UserError, steer
from ss_lens.scoring.refusal_score import refusal_score


@pytest.fixture
def model(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


@pytest.fixture
def calibration(model: TransformerBridge, tiny_data: ContrastiveDataset) -> Calibration:
    return ss_lens.calibrate(ss_lens.capture(model, tiny_data), rule="uniform")


def tilted(first_deg: float, second_deg: float, width: int = 32) -> Plane:
    """A plane whose principal angles to that of the first two axes are known."""
    alpha, beta = math.radians(first_deg), math.radians(second_deg)
    b1, b2 = torch.zeros(2, width)
    b1[0], b1[2] = math.cos(alpha), math.sin(alpha)
    b2[1], b2[3] = math.cos(beta), math.sin(beta)
    return Plane(b1, b2)


@pytest.mark.parametrize("angles", [(0.0, 0.0), (10.0, 40.0), (90.0, 90.0), (0.001, 60.0)])
def test_planes_of_known_principal_angles_are_told_apart_by_them(
    angles: tuple[float, float], calibration: Calibration
) -> None:
    flat, other = (replace(calibration, plane=tilted(*pair)) for pair in ((0.0, 0.0), angles))
    row = compare({"one": flat, "two": other}).iloc[0]
    assert (row["angle_1_deg"], row["angle_2_deg"]) == pytest.approx(angles, abs=1e-3)
    assert row["b1_angle_deg"] == pytest.approx(angles[0], abs=0.05)
    assert (row["kind"], row["first"], row["second"]) == (BETWEEN, "one", "two")


def test_turning_a_plane_in_itself_moves_its_direction_and_no_principal_angle(
    calibration: Calibration,
) -> None:
    flat = tilted(0, 0)
    turn = math.radians(50)
    turned = Plane(
        math.cos(turn) * flat.b1 + math.sin(turn) * flat.b2,
        math.cos(turn) * flat.b2 - math.sin(turn) * flat.b1,
    )
    both = {name: replace(calibration, plane=p) for name, p in (("a", flat), ("b", turned))}
    row = compare(both).iloc[0]
    assert row["angle_2_deg"] == pytest.approx(0, abs=1e-3)
    assert row["b1_angle_deg"] == pytest.approx(50, abs=1e-3)
    mirrored = {**both, "b": replace(calibration, plane=Plane(-flat.b1, flat.b2))}
    assert compare(mirrored).iloc[0]["b1_angle_deg"] == pytest.approx(180)


def test_random_planes_of_some_width_are_far_apart(calibration: Calibration) -> None:
    """In 32 dimensions the smaller angle between random planes rarely falls below 45 degrees."""
    row = compare({"a": calibration, "b": calibration}).iloc[0]
    assert 45 < row["random_1_deg"] < 75
    assert row["angle_2_deg"] == pytest.approx(0, abs=1e-4)


def test_sites_are_compared_by_their_overlap(calibration: Calibration) -> None:
    sites = calibration.sites
    one, two = at_sites(calibration, sites[:3]), at_sites(calibration, sites[1:5])
    table = compare({"a": one, "b": two}, {"a": [one, one]}).set_index("kind")
    row = table.loc[BETWEEN]
    assert (row["n_first"], row["n_second"], row["n_both"], row["jaccard"]) == (3, 4, 2, 0.4)
    assert table.loc[WITHIN, "jaccard"] == 1


def test_the_dial_is_measured_on_each_source_under_each_calibration(
    model: TransformerBridge, calibration: Calibration, tiny_data: ContrastiveDataset
) -> None:
    other = replace(calibration, plane=Plane(calibration.plane.b2, calibration.plane.b1))
    calibrations = {"x": calibration, "y": other}
    prompts = {"x": tiny_data.positive[:4], "z": tiny_data.negative[:3]}
    table = measure(model, calibrations, RotateBy, prompts, [0, 90])
    found = table.set_index(["calibrated_on", "measured_on", "angle_deg"])
    assert len(found) == 8
    for made_on, used in calibrations.items():
        for source, some in prompts.items():
            before = refusal_score(model, some)["refusal_score"]
            with steer(model, used, RotateBy(90)):
                after = refusal_score(model, some)["refusal_score"]
            row = found.loc[(made_on, source, 90.0)]
            assert row["refusal_score"] == pytest.approx(after.mean(), abs=1e-4)
            assert row["change"] == pytest.approx((after - before).mean(), abs=1e-4)
            assert row["n"] == len(some)
            still = found.loc[(made_on, source, 0.0)]
            assert still["change"] == pytest.approx(0, abs=1e-4)
    # A quarter turn from b1 to b2 and one from b2 to b1 are not the same.
    assert found.loc[("x", "x", 90.0), "change"] != found.loc[("y", "x", 90.0), "change"]
    geometry = compare(calibrations, {"x": [calibration, other]})
    said = findings(geometry, table)
    assert said[0].startswith("x and y: principal angles 0° and 0° (halves of one source: 0°)")
    assert "On 4 prompts of x, at " in said[1]
    assert len(said) == 3
    drawn = figure(table, "made up")
    assert [a.text for a in drawn.layout.annotations[:2]] == ["measured on x", "measured on z"]
    shown = [t.name for t in drawn.data if t.showlegend and t.name.startswith("calibrated")]
    assert shown == ["calibrated on x", "calibrated on y"]
    assert geometry_figure(geometry).data[0].y == ("x – y", "x, two halves")


def test_random_planes_are_a_band_of_their_draws_on_each_source(
    model: TransformerBridge, calibration: Calibration, tiny_data: ContrastiveDataset
) -> None:
    acts = ss_lens.capture(model, tiny_data)
    nulls = matched_planes(acts, calibration, 4, seed=2)
    prompts = {"x": tiny_data.positive[:4], "z": tiny_data.negative[:3]}
    table = measure(model, {"x": calibration}, RotateBy, prompts, [0, 90], nulls=nulls)
    own = table[table["draws"] == 1].drop(columns="draws").reset_index(drop=True)
    alone = measure(model, {"x": calibration}, RotateBy, prompts, [0, 90]).drop(columns="draws")
    pd.testing.assert_frame_equal(own, alone)
    for source, some in prompts.items():
        before = refusal_score(model, some)["refusal_score"]
        means = []
        for null in nulls:
            with steer(model, null, RotateBy(90)):
                means.append((refusal_score(model, some)["refusal_score"] - before).mean())
        here = (table["draws"] == 4) & (table["measured_on"] == source)
        row = table[here & (table["angle_deg"] == 90)].iloc[0]
        assert row["calibrated_on"] == "random planes, equal energy"
        assert row["change"] == pytest.approx(np.mean(means), abs=1e-4)
        ends = np.quantile(means, (0.025, 0.975))
        assert (row["change_low"], row["change_high"]) == pytest.approx(ends, abs=1e-4)
        assert row["n"] == len(some)
    drawn = figure(table, "made up")
    assert [t.name for t in drawn.data].count(f"{row['calibrated_on']}: {SHARE} of 4 draws") == 2
    assert "calibrated on random planes, equal energy" not in {t.name for t in drawn.data}
    said = findings(compare({"a": calibration, "b": calibration}), table)[1]
    assert "4 random planes of equal energy change it by" in said
    with pytest.raises(UserError, match="one random plane makes no band; got 1"):
        measure(model, {"x": calibration}, RotateBy, prompts, [0], nulls=nulls[:1])


def test_matched_planes_steer_the_sites_of_the_calibration_with_its_energy(
    model: TransformerBridge, calibration: Calibration, tiny_data: ContrastiveDataset
) -> None:
    acts = ss_lens.capture(model, tiny_data)
    some = at_sites(calibration, calibration.sites[2:4])
    nulls = matched_planes(acts, some, 3, seed=5)
    assert [null.selected_sites for null in nulls] == [some.selected_sites] * 3
    assert len({float(null.plane.b1[0]) for null in nulls}) == 3
    for null in nulls:
        assert null.report["energy"] == pytest.approx(null.report["target_energy"], rel=0.05)


def test_calibrations_that_cannot_be_compared_are_refused(
    model: TransformerBridge,
    calibration: Calibration,
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
) -> None:
    with pytest.raises(UserError, match="between two sources or more; got 1"):
        compare({"a": calibration})
    with pytest.raises(UserError, match="two calibrations; got 1 of 'a'"):
        compare({"a": calibration, "b": calibration}, {"a": [calibration]})
    acts = ss_lens.capture(tiny_models["llama"], tiny_data)
    with pytest.raises(UserError, match="'a' and 'b' are of different models or sites"):
        compare({"a": calibration, "b": ss_lens.calibrate(acts, rule="uniform")})
    with pytest.raises(UserError, match="one source or more, none of them empty"):
        measure(model, {"a": calibration}, RotateBy, {}, [0])
