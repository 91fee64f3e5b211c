"""Figures draw all of their tables, keep text apart, and need no torch."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses import __main__ as drawing, ablations, angle_response, run_figures, style
from analyses.run_figures import cosine_heatmap, norm_growth
from analyses.run_parts import RunParts
from ss_lens import Activations, Site, UserError
from ss_lens.experiments.ablations.variants import METRICS
from ss_lens.models.sites import STREAMS
from tests.conftest import made_activations

CLASSES = ("positive", "negative")
SITES = tuple(Site(layer, stream) for layer in range(3) for stream in ("ln1_out", "ln2_out"))


def lines(figure: go.Figure) -> list[go.Scatter]:
    """The curves, without the bands around them and what explains marks."""
    return [t for t in figure.data if t.fill != "toself" and t.meta != style.EXPLAINS]


def angle_table(n_ways: int, angles: range = range(0, 360, 45)) -> pd.DataFrame:
    rows = [
        {"way": f"way {way}", "prompt_class": label, "angle_deg": angle, "n": 3, "unsteered": 1.0}
        for way in range(n_ways)
        for label in CLASSES
        for angle in angles
    ]
    table = pd.DataFrame(rows)
    score = np.cos(np.deg2rad(table["angle_deg"]))
    return table.assign(refusal_score=score, low=score - 0.2, high=score + 0.2, opening_mass=0.7)


def norm_table(streams: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        {
            "site": f"L{layer}.{stream}", "layer": layer, "stream": stream, "prompt_class": label,
            "mean_norm": 1.0 + layer, "low": 1.0, "high": 9.0, "growth": 1.1,
        }
        for label in CLASSES
        for layer in range(4)
        for stream in streams
    ]  # fmt: skip
    return pd.DataFrame(rows)


def scan_table(draws: dict[str, int]) -> pd.DataFrame:
    """Each draw peaks elsewhere, so that a mean over draws is flat."""
    rows = [
        {
            "variant": variant, "prompt_class": label, "draw": draw, "angle_deg": angle,
            "refusal_score": math.cos(math.radians(angle + 360 * draw / n)), "opening_mass": 0.9,
        }
        for variant, n in draws.items()
        for label in CLASSES
        for draw in range(n)
        for angle in range(0, 360, 45)
        for _ in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def made_up(seed: int = 0) -> Activations:
    rng = np.random.default_rng(seed)
    positive, negative = (
        torch.from_numpy(rng.normal(shift, 1, size=(8, len(SITES), 16))).float() for shift in (1, 0)
    )
    return made_activations(positive, negative, SITES)


# --- nothing is left out ---


@pytest.mark.parametrize("n_ways", [1, 3, 9, 20])
def test_every_way_of_steering_has_a_curve_of_its_own_look(n_ways: int) -> None:
    drawn = lines(angle_response.figure(angle_table(n_ways)))
    assert len(drawn) == 2 * n_ways
    looks = {(trace.line.color, trace.line.dash) for trace in drawn}
    assert len(looks) == n_ways
    legend = [trace.name for trace in drawn if trace.showlegend]
    assert legend == [f"way {way}" for way in range(n_ways)]


@pytest.mark.parametrize("streams", [STREAMS, STREAMS[:5], ("ln1_out",)])
def test_every_stream_and_class_is_drawn_in_both_panels(streams: tuple[str, ...]) -> None:
    drawn = lines(norm_growth.figure(norm_table(streams)))
    assert len(drawn) == 2 * 2 * len(streams)
    for axis in ("y", "y2"):
        panel = [trace for trace in drawn if trace.yaxis == axis]
        assert {t.name for t in panel} == {f"{s}, {c}" for s in streams for c in CLASSES}
        assert len({(t.line.color, t.line.width) for t in panel}) == 2 * len(streams)


def test_names_beyond_the_colours_still_have_a_look_each() -> None:
    names = [f"series {i}" for i in range(60)]
    looks = style.series([*names, names[0]])
    assert [*looks] == names
    assert len({looks[name] for name in names[:42]}) == 42


def test_the_polar_plot_draws_each_draw_and_averages_none() -> None:
    draws = {"full method": 1, "random plane": 4}
    figure = ablations.polar(scan_table(draws))
    assert len(figure.data) == 2 * (1 + 4)
    for trace in figure.data:
        assert max(trace.r) - min(trace.r) == pytest.approx(2)
    assert [t.name for t in figure.data if t.showlegend] == [*draws]
    written = ablations.angle_means(scan_table(draws))
    assert {*written["draw"]} == {0, 1, 2, 3}
    assert written.groupby(["prompt_class", "variant", "draw"]).size().eq(8).all()


def test_the_polar_plot_draws_all_variants_unless_some_are_named() -> None:
    draws = {f"variant {i}": 1 for i in range(13)}
    figure = ablations.polar(scan_table(draws))
    assert {trace.name for trace in figure.data} == {*draws}
    assert len({(t.line.color, t.line.dash) for t in figure.data}) == 13
    few = ablations.polar(scan_table(draws), variants=["variant 9", "variant 2"])
    assert [t.name for t in few.data if t.showlegend] == ["variant 9", "variant 2"]
    with pytest.raises(UserError, match=r"'variant 99' was not scanned; draw one or more of v"):
        ablations.polar(scan_table(draws), variants=["variant 99"])


def test_a_variant_that_is_another_at_one_angle_has_no_curve_of_its_own() -> None:
    scan = scan_table({"full method": 1, "random plane": 2})
    again = scan[scan["variant"] == "full method"].assign(variant="rotate by 90°")
    apart = again.assign(variant="apart", refusal_score=again["refusal_score"] + 1)
    lone = again.query("angle_deg == 0").assign(variant="Ablate")
    means = ablations.angle_means(pd.concat([scan, again, apart, lone], ignore_index=True))
    kept = ablations.turned(means)
    assert [*dict.fromkeys(kept["variant"])] == ["full method", "random plane", "apart"]
    assert len(kept) == len(ablations.angle_means(scan)) + len(ablations.angle_means(apart))


def test_the_heatmap_of_a_consensus_has_no_cross() -> None:
    acts = made_up()
    crosses = []
    for choice in (ss_lens.Consensus(), ss_lens.MaxMeanCosine()):
        calibration = ss_lens.calibrate(acts, choice=choice, rule="uniform")
        figure = cosine_heatmap.figure(cosine_heatmap.measure(calibration))
        assert len(figure.data[0].z) == len(SITES)
        crosses.append((len(figure.layout.shapes), len(figure.layout.annotations)))
    assert crosses == [(0, 0), (2, 1)]


def test_the_cross_of_a_heatmap_does_not_widen_its_axes() -> None:
    calibration = ss_lens.calibrate(made_up(), rule="uniform")
    figure = cosine_heatmap.figure(cosine_heatmap.measure(calibration))
    assert figure.layout.xaxis.range == (-0.5, 5.5)
    assert figure.layout.yaxis.range == (5.5, -0.5)


def test_a_band_has_no_markers_however_few_its_points() -> None:
    x = np.arange(3.0)
    assert style.band(x, x, x + 1, "#000000", "band").mode == "lines"


# --- text stays apart, and on the page ---


def figures(subtitle: str) -> dict[str, go.Figure]:
    drawn = {
        "angle_response": angle_response.figure(angle_table(9), subtitle),
        "norm_growth": norm_growth.figure(norm_table(STREAMS), subtitle),
        "polar": ablations.polar(scan_table({f"v{i}": 1 for i in range(13)}), subtitle),
    }
    rows = itertools.product(("full method", "other"), METRICS)
    table = pd.DataFrame(rows, columns=["variant", "metric"]).assign(
        prompt_class="positive", settled=True, mean=0.0, **dict.fromkeys(ablations.HOVER, 1.0)
    )
    return {**drawn, "forest": ablations.forest(table, subtitle)}


@pytest.mark.parametrize("name", ["angle_response", "norm_growth", "polar", "forest"])
def test_titles_are_above_the_panels_and_legends_below(name: str) -> None:
    short, long = (figures(text)[name].layout for text in ("here", "a word " * 40))
    assert short.width is None
    assert long.width is None
    assert short.autosize
    assert long.autosize
    assert short.legend.y < 0
    assert short.legend.yanchor == "top"
    assert (short.title.y, short.title.yref, short.title.yanchor) == (1, "container", "top")
    for layout in (short, long):
        in_lines = layout.title.text.split("<br>")
        assert all(len(line) <= style.SUBTITLE_WIDTH + len("<sup></sup>") for line in in_lines)
        assert layout.margin.t >= 24 + 22 * len(in_lines)
    assert long.margin.t > short.margin.t


def test_a_longer_legend_gets_more_room_and_leaves_the_panels_their_size() -> None:
    def panel(layout: go.Layout) -> float:
        return layout.height - layout.margin.t - layout.margin.b

    few, many = (angle_response.figure(angle_table(n)).layout for n in (2, 20))
    assert many.margin.b > few.margin.b
    assert panel(many) == panel(few)


# --- what a figure needs ---


def test_figure_modules_import_no_torch() -> None:
    names = ("budget", "confounds", "norm_audit", "stability")
    names += ("logit_lens", "site_effects", "token_projections")
    code = "import sys\n" + "".join(f"import analyses.{name}.figures\n" for name in names)
    code += "assert not {'torch', 'transformer_lens', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_each_question_offers_its_measure_and_figure() -> None:
    from analyses import (
        budget,
        confounds,
        logit_lens,
        norm_audit,
        site_effects,
        stability,
        token_projections,
    )

    inside = (logit_lens, site_effects, token_projections)
    for question in (budget, confounds, norm_audit, stability, *inside):
        assert callable(question.measure)
        assert any(name.endswith("figure") for name in question.__all__)
        assert all(hasattr(question, name) for name in question.__all__)


def test_a_new_figure_of_a_run_is_one_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_one_file.py").write_text(
        "import pandas as pd\n"
        "import plotly.graph_objects as go\n\n\n"
        "def draw(parts):\n"
        "    return pd.DataFrame({'x': [1]}), go.Figure()\n"
    )
    acts = made_up()
    parts = RunParts(ss_lens.calibrate(acts, rule="uniform"), acts, acts, pd.DataFrame())
    monkeypatch.setattr(RunParts, "load", lambda *_: parts)
    before = drawing.draw(tmp_path)
    assert [*before] == ["cosine_heatmap", "norm_growth", "sign_agreement"]
    monkeypatch.setattr(run_figures, "__path__", [*run_figures.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "analyses.run_figures.of_one_file", raising=False)
    assert [*drawing.draw(tmp_path)] == sorted([*before, "of_one_file"])


class Bar:
    """Counts what is shown of the progress."""

    def __init__(self, total: int, what: str, unit: str) -> None:
        self.total, self.what, self.done = total, what, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self.done += n


def test_the_angle_response_shows_how_far_it_is(
    tiny_llama: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Bar] = []

    def shown(total: int, what: str, unit: str) -> Bar:
        bars.append(Bar(total, what, unit))
        return bars[-1]

    def scored(*args: object) -> pd.DataFrame:
        angles = [angle for angle in args[4] for _ in range(3)]
        return pd.DataFrame({"angle_deg": angles, "refusal_score": 0.5, "opening_mass": 0.9})

    monkeypatch.setattr(angle_response, "progress_bar", shown)
    monkeypatch.setattr(angle_response, "sweep_refusal_score", scored)
    monkeypatch.setattr(
        angle_response, "refusal_score", lambda *_: pd.DataFrame({"refusal_score": [1.0]})
    )
    data = ss_lens.ContrastiveDataset("two", ("a", "b"), ("c", "d"))
    calibration = ss_lens.calibrate(made_up(), rule="uniform")
    ways = {"one": (calibration, ss_lens.RotateBy), "other": (calibration, ss_lens.RotateTo)}
    table = angle_response.measure(tiny_llama, ways, data, [0, 90], n_resamples=10)
    assert len(table) == 2 * 2 * 2
    assert [(bar.what, bar.total, bar.done) for bar in bars] == [("angle response", 4, 4)]
