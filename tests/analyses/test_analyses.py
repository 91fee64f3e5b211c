"""Measures agree with counts done by hand; figures show what the tables hold."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses import __main__ as drawing, output
from analyses.run_figures import cosine_heatmap, norm_growth, sign_agreement
from ss_lens import Activations, Calibration, ContrastiveDataset, RunConfig, Store, UserError
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng


@pytest.fixture
def acts(tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store) -> Activations:
    return ss_lens.capture(tiny_llama, tiny_data, store=store)


@pytest.fixture
def calibration(acts: Activations) -> Calibration:
    return ss_lens.calibrate(acts, rule="uniform")


def test_sign_agreement_equals_a_loop_over_prompts(
    acts: Activations, calibration: Calibration
) -> None:
    table = sign_agreement.measure(acts, calibration, n_resamples=50)
    b1 = calibration.plane.b1.numpy()
    for row in table.itertuples():
        positive, negative = acts.at(ss_lens.Site.parse(row.site))
        along = [
            [float(h @ b1 / np.linalg.norm(h)) for h in side.numpy()]
            for side in (positive, negative)
        ]
        assert row.positive_mean == pytest.approx(np.mean(along[0]), abs=1e-5)
        assert row.negative_sd == pytest.approx(np.std(along[1], ddof=1), abs=1e-5)
        assert row.positive_share == pytest.approx(np.mean([x > 0 for x in along[0]]))
        assert row.negative_share == pytest.approx(np.mean([x < 0 for x in along[1]]))
        assert row.product == pytest.approx(np.mean(along[0]) * np.mean(along[1]), abs=1e-6)
        assert row.product_low <= row.product_high
        assert row.positive_low - 1e-6 <= row.positive_mean <= row.positive_high + 1e-6
        assert row.negative_low - 1e-6 <= row.negative_mean <= row.negative_high + 1e-6


def test_bootstrap_interval_covers_a_known_product_and_narrows_with_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = []
    for n in (20, 2000):
        values = torch.randn(n, 1, generator=generator).double().numpy() * 0.1 + 0.5
        (low,), (high,) = bca_mean_interval(values, derive_rng(0))
        assert low < 0.5 < high
        assert high - low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(n), rel=0.25)
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_p_opposite_is_high_for_opposite_and_low_for_equal_sides(
    acts: Activations, calibration: Calibration
) -> None:
    along = calibration.plane.b1
    h = torch.zeros_like(acts.positive)
    opposite = Activations(h + along, h[: len(acts.negative)] - along, acts.spec)
    equal = Activations(h + along, h[: len(acts.negative)] + along, acts.spec)
    assert (sign_agreement.measure(opposite, calibration)["p_opposite"] == 1).all()
    assert (sign_agreement.measure(equal, calibration)["p_opposite"] == 0).all()


def test_norm_growth_is_the_ratio_to_the_layer_before(acts: Activations) -> None:
    table = norm_growth.measure(acts, n_resamples=20)
    for label, h in (("positive", acts.positive), ("negative", acts.negative)):
        means = {
            str(site): float(np.linalg.norm(h[:, i].numpy(), axis=-1).mean())
            for i, site in enumerate(acts.sites)
        }
        for row in table[table["prompt_class"] == label].itertuples():
            assert row.mean_norm == pytest.approx(means[row.site], rel=1e-5)
            assert row.low - 1e-4 <= row.mean_norm <= row.high + 1e-4
            if row.layer == 0:
                assert np.isnan(row.growth)
            else:
                before = means[f"L{row.layer - 1}.{row.stream}"]
                assert row.growth == pytest.approx(row.mean_norm / before, rel=1e-5)


def test_cosine_heatmap_is_symmetric_with_ones_and_marks_the_direction_site(
    calibration: Calibration,
) -> None:
    table = cosine_heatmap.measure(calibration)
    square = table.pivot(index="site", columns="other_site", values="cosine")
    np.testing.assert_allclose(square, square.T, atol=1e-6)
    excluded = {str(site) for site in calibration.candidates.excluded}
    for name in square.index:
        value = square.loc[name, name]
        assert np.isnan(value) if name in excluded else value == pytest.approx(1, abs=1e-5)
    marked = set(table.loc[table["is_direction_site"], "site"])
    assert marked == {str(calibration.direction_site)}
    heatmap = cosine_heatmap.figure(table)
    assert (heatmap.data[0].zmin, heatmap.data[0].zmax) == (-1, 1)
    assert any(str(calibration.direction_site) in a.text for a in heatmap.layout.annotations)


def test_sign_agreement_figure_shades_the_steered_sites_alone(
    acts: Activations, tiny_data: ContrastiveDataset
) -> None:
    calibration = ss_lens.calibrate(acts)
    assert 0 < len(calibration.selected_sites) < len(calibration.sites)
    figure = sign_agreement.figure(sign_agreement.measure(acts, calibration))
    rectangles = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    # one per steered site and panel
    assert len(rectangles) == 2 * len(calibration.selected_sites)


@pytest.mark.slow
def test_a_run_directory_becomes_four_self_contained_pages(
    tiny_models: dict[str, TransformerBridge], tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    config = RunConfig(angles_deg=(0, 90), dev=1, test=2, max_new_tokens=3, draws=2, rule="uniform")
    ss_lens.run_main_job(tiny_models["qwen2"], tiny_data, tmp_path / "run", config)
    drawing.main(tmp_path / "run")
    for name in ("dial", "sign_agreement", "norm_growth", "cosine_heatmap"):
        page = (tmp_path / "run" / "figures" / f"{name}.html").read_text("utf-8")
        assert not re.search(r'<script[^>]+src="http', page)
        assert len(pd.read_csv(tmp_path / "run" / "figures" / f"{name}.csv")) > 0


def test_figures_of_a_missing_store_or_run_say_what_to_do(
    tiny_models: dict[str, TransformerBridge], tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no run"):
        drawing.draw(tmp_path / "nothing")
    config = RunConfig(angles_deg=(0,), dev=1, test=2, max_new_tokens=1, draws=1, rule="uniform")
    ss_lens.run_main_job(tiny_models["qwen2"], tiny_data, tmp_path / "run", config)
    with pytest.raises(UserError, match=r"run again|SS_LENS_HOME"):
        drawing.draw(tmp_path / "run", Store(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="unknown --format 'gif'"):
        drawing.main(tmp_path / "run", formats=["gif"])


def test_a_static_format_is_written_or_says_what_is_missing(tmp_path: Path) -> None:
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1]))
    if _has_a_browser():
        output.write(figure, tmp_path / "figure.svg")
        assert (tmp_path / "figure.svg").read_text("utf-8").startswith("<svg")
    else:
        with pytest.raises(UserError, match="Chrome"):
            output.write(figure, tmp_path / "figure.svg")
        assert not list(tmp_path.iterdir())


def test_a_failed_drawing_says_what_is_missing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_browser = """
def write_image(self, *args, **kwargs):
    raise RuntimeError("no browser found\\nlong story")

from plotly.graph_objects import Figure
Figure.write_image = write_image
"""
    monkeypatch.setattr(output, "DRAWING", without_a_browser + output.DRAWING)
    with pytest.raises(UserError, match=r"figure.pdf could not .*no browser found\).*Chrome"):
        output.write(go.Figure(), tmp_path / "figure.pdf")
    assert not list(tmp_path.iterdir())


def test_a_browser_that_hangs_is_ended_with_what_it_started_and_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "chromium"
    browser.write_text(f"#!/bin/sh\nsleep 600 & echo $! $$ > {tmp_path}/started\nsleep 600\n")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    monkeypatch.setattr(output, "DRAWING_SECONDS", 20.0)
    folder = tmp_path / "figures"
    with pytest.raises(UserError, match=r"figure.svg could not .*not answer within 20 s.*Chrome"):
        output.write(go.Figure(), folder / "figure.svg")
    assert not list(folder.iterdir())
    time.sleep(0.5)
    started = (tmp_path / "started").read_text().split()
    states = [_state(int(number)) for number in started]
    assert len(states) == 2
    assert {*states} <= {None, "Z"}


def _state(process: int) -> str | None:
    """The state of a process in one letter; ``None`` where it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return None


def _has_a_browser() -> bool:
    from choreographer.browsers.chromium import Chromium

    return Chromium.find_browser(skip_local=False) is not None


def test_sign_agreement_takes_a_calibration_of_some_layers(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, acts: Activations, store: Store
) -> None:
    some = ss_lens.capture(tiny_llama, tiny_data, layers=[0, 2], store=store)
    calibration = ss_lens.calibrate(some, rule="uniform")
    table = sign_agreement.measure(acts, calibration, n_resamples=20)
    assert table["site"].tolist() == [str(site) for site in calibration.sites]
    pd.testing.assert_frame_equal(table, sign_agreement.measure(some, calibration, n_resamples=20))


def test_sign_agreement_names_a_site_that_was_not_captured(
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    calibration: Calibration,
    store: Store,
) -> None:
    some = ss_lens.capture(tiny_llama, tiny_data, layers=[0, 2], store=store)
    with pytest.raises(ss_lens.UserError, match=r"L1\.ln1_out was not captured; captured are"):
        sign_agreement.measure(some, calibration, n_resamples=20)


@pytest.mark.parametrize(
    ("model", "dataset"),
    [("smollm2-135m-refusal", "refusal"), ("qwen2.5-coder-1.5b", "refusal-everyday")],
)
def test_an_analysis_takes_the_dataset_of_the_main_job_unless_one_is_named(
    model: str, dataset: str
) -> None:
    assert output.dataset_name(None, model) == dataset
    assert output.dataset_name("mine.jsonl", model) == "mine.jsonl"
