"""Coordinates of tokens: closed forms, the trace as oracle, and what the figure shows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.token_projections import figures
from analyses.token_projections.measures import coordinates, measure, usual_sites
from analyses.tokens import LONGEST, legible
from ss_lens import Calibration, ContrastiveDataset, Plane, RotateBy, Site, Trace, UserError, steer
from ss_lens.models.chat import tokenize
from tests.analyses.steered import at_layers

KEY = ["prompt_class", "prompt_index", "condition", "site", "position"]


@pytest.fixture
def model(tiny_llama: TransformerBridge) -> TransformerBridge:
    return tiny_llama


@pytest.fixture
def calibration(model: TransformerBridge, tiny_data: ContrastiveDataset) -> Calibration:
    return ss_lens.calibrate(ss_lens.capture(model, tiny_data), rule="uniform")


@pytest.fixture
def two(tiny_data: ContrastiveDataset) -> ContrastiveDataset:
    return tiny_data.head(2)


def plane() -> Plane:
    rows = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))[0]
    return Plane(*rows.T.contiguous())


@pytest.mark.parametrize("angle", [0, 30, 90, 135, 180, 270, 359])
def test_coordinates_in_closed_form(angle: float) -> None:
    basis, turn = plane(), math.radians(angle)
    inside = 3 * (math.cos(turn) * basis.b1 + math.sin(turn) * basis.b2)
    rest = torch.randn(5, generator=torch.Generator().manual_seed(1))
    rest = rest - basis.basis.T @ (basis.basis @ rest)
    rest = 4 * rest / rest.norm()
    row = coordinates((inside + rest).unsqueeze(0), basis).iloc[0]
    assert row["norm"] == pytest.approx(5, rel=1e-5)
    assert row["in_plane_norm"] == pytest.approx(3, rel=1e-5)
    assert row["p1"] == pytest.approx(3 * math.cos(turn), abs=1e-5)
    assert row["cos_2"] == pytest.approx(0.6 * math.sin(turn), abs=1e-5)
    assert abs((row["angle_deg"] - angle + 180) % 360 - 180) < 1e-3
    assert 0 <= row["angle_deg"] < 360


def test_an_activation_outside_of_the_plane_has_no_angle() -> None:
    flat = Plane(torch.eye(3)[0], torch.eye(3)[1])
    row = coordinates(torch.tensor([[0.0, 0.0, 2.0]]), flat).iloc[0]
    assert (row["p1"], row["p2"], row["cos_1"]) == (0, 0, 0)
    assert math.isnan(row["angle_deg"])


def test_the_first_steered_site_turns_every_token_by_the_angle_and_keeps_its_norm(
    model: TransformerBridge, calibration: Calibration, two: ContrastiveDataset
) -> None:
    site = Site(1, "ln1_out")
    late = at_layers(calibration, [1, 2])
    table = measure(model, late, RotateBy(100), two, [site], max_new_tokens=3)
    prompt = table[table["is_prompt"]].set_index(KEY)
    before = prompt.xs("unsteered", level="condition")
    after = prompt.xs("steered", level="condition")
    assert len(before) == len(after) > 0
    turned = (after["angle_deg"] - before["angle_deg"] - 100 + 180) % 360 - 180
    assert turned.abs().max() < 0.01
    np.testing.assert_allclose(after["norm"], before["norm"], rtol=1e-5)
    np.testing.assert_allclose(after["in_plane_norm"], before["in_plane_norm"], rtol=1e-4)


def test_sites_above_all_edits_and_the_identity_change_nothing(
    model: TransformerBridge, calibration: Calibration, two: ContrastiveDataset
) -> None:
    below = (Site(0, "ln1_out"), Site(0, "resid_post"))
    late = at_layers(calibration, [2])
    for operator, sites in ((RotateBy(150), below), (RotateBy(0), (Site(2, "ln2_out"),))):
        table = measure(model, late, operator, two, sites, max_new_tokens=2)
        prompt = table[table["is_prompt"]].set_index(KEY)[["p1", "p2", "norm"]]
        same = [prompt.xs(name, level="condition") for name in ("unsteered", "steered")]
        pd.testing.assert_frame_equal(*same)


def test_a_trace_of_the_same_pass_says_the_same(
    model: TransformerBridge, calibration: Calibration, two: ContrastiveDataset
) -> None:
    site = calibration.selected_sites[2]
    table = measure(model, calibration, RotateBy(75), two, [site], max_new_tokens=3)
    rows = table.query("condition == 'steered' and prompt_class == 'positive'")
    for index, ids in enumerate(tokenize(model, two.positive)):
        trace = Trace()
        with steer(model, calibration, RotateBy(75), trace=trace):
            model(torch.tensor([ids]))
        traced = trace.frame().query("site == @site.__str__()")
        own = rows[(rows["prompt_index"] == index) & rows["is_prompt"]]
        np.testing.assert_allclose(own["angle_deg"], traced["angle_after_deg"], atol=1e-2)
        np.testing.assert_allclose(own["norm"], traced["norm_after"], rtol=1e-4)


def test_the_last_prompt_token_unsteered_is_what_capture_reads(
    model: TransformerBridge, calibration: Calibration, two: ContrastiveDataset
) -> None:
    acts = ss_lens.capture(model, two)
    table = measure(model, calibration, RotateBy(90), two, max_new_tokens=1)
    for name in table["site"].unique():
        rows = table.query("site == @name and condition == 'unsteered' and is_prompt")
        last = rows.groupby(["prompt_class", "prompt_index"], sort=False).tail(1)
        h = torch.cat(acts.at(Site.parse(name)))
        expected = coordinates(h, calibration.plane)
        np.testing.assert_allclose(last["p1"], expected["p1"], atol=1e-4)
        np.testing.assert_allclose(last["p2"], expected["p2"], atol=1e-4)


def test_tokens_are_the_prompts_and_then_the_answers(
    model: TransformerBridge, calibration: Calibration, two: ContrastiveDataset
) -> None:
    table = measure(model, calibration, RotateBy(60), two, max_new_tokens=4)
    for condition, block in (("unsteered", None), ("steered", RotateBy(60))):
        for index, ids in enumerate(tokenize(model, two.negative)):
            rows = table.query("prompt_class == 'negative' and prompt_index == @index")
            rows = rows[rows["condition"] == condition]
            rows = rows[rows["site"] == rows["site"].iloc[0]]
            prompt, answer = rows[rows["is_prompt"]], rows[~rows["is_prompt"]]
            assert prompt["token"].tolist() == [model.tokenizer.decode([i]) for i in ids]
            assert 0 < len(answer) <= 4
            if block is None:
                (text,) = ss_lens.generate(model, [two.negative[index]], max_new_tokens=4)
            else:
                with steer(model, calibration, block):
                    (text,) = ss_lens.generate(model, [two.negative[index]], max_new_tokens=4)
            special = model.tokenizer.all_special_tokens
            assert [t for t in answer["token"] if t not in special] == text.split()


def test_usual_sites_are_the_ends_and_the_directions(calibration: Calibration) -> None:
    sites = usual_sites(calibration)
    assert [*sites] == sorted(sites)
    assert {calibration.selected_sites[0], calibration.selected_sites[-1]} <= {*sites}
    assert calibration.direction_site in sites


def test_bad_input_is_refused(
    model: TransformerBridge, calibration: Calibration, two: ContrastiveDataset
) -> None:
    with pytest.raises(UserError, match="layer 31 is out of range for the 3-layer model"):
        measure(model, calibration, RotateBy(90), two, [Site(31, "ln1_out")])
    with pytest.raises(UserError, match="'ln1_post_out' does not exist on this architecture"):
        measure(model, calibration, RotateBy(90), two, [Site(0, "ln1_post_out")])
    with pytest.raises(UserError, match="a strength for each of 2 rows; give one strength"):
        measure(model, calibration, RotateBy((0, 90)), two)
    with pytest.raises(UserError, match="max_new_tokens must be at least 1; got 0"):
        measure(model, calibration, RotateBy(90), two, max_new_tokens=0)


def made_up() -> pd.DataFrame:
    rows = [
        {
            "prompt_class": "positive", "prompt_index": 0, "condition": condition, "site": site,
            "steered_site": True, "position": i, "token": token, "is_prompt": i < 3,
            "p1": sign * i, "p2": 1.0, "norm": 10.0, "cos_1": sign * i / 10, "cos_2": 0.1,
            "in_plane_norm": 1.0, "angle_deg": math.nan if i == 0 else 30.0 * i,
        }
        for condition, sign in (("unsteered", 1), ("steered", -1))
        for site in ("L1.ln1_out", "L5.ln2_out")
        for i, token in enumerate(["<s>", " a", "\n", "<b>", "x" * 40][: 4 + (sign > 0)])
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_figure_shows_every_token_with_an_arrow_on_a_symmetric_scale() -> None:
    drawn = figures.figure(made_up())
    axis = drawn.layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-0.4, 0.4)
    maps = [trace for trace in drawn.data if trace.type == "heatmap"]
    assert [np.shape(trace.z) for trace in maps] == [(5, 2), (4, 2)]
    assert [row[0] for row in maps[0].text] == ["", "↗", "↗", "↑", "↖"]
    assert drawn.layout.yaxis.ticktext[:4] == ("&lt;s&gt;", "·a", "⏎", "&lt;b&gt;")
    assert drawn.layout.yaxis2.side == "right"
    lines = [shape.y0 for shape in drawn.layout.shapes]
    assert lines == [2.5, 2.5]


def test_the_rows_of_several_prompts_are_refused() -> None:
    table = pd.concat([made_up(), made_up().assign(prompt_index=1)])
    with pytest.raises(UserError, match=r"shows one prompt; got the rows of 2\. Select one"):
        figures.figure(table)


def test_long_tokens_are_cut_and_white_space_is_visible() -> None:
    assert len(legible("y" * 99)) == LONGEST
    assert legible(" a\n\t<") == "·a⏎⇥&lt;"
