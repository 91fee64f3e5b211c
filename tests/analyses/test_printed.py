"""Figures for print: nothing small, cut off, overlapping or lost in grey; the same bytes twice."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses import dial_looks, output, style
from analyses.printed import (
    angle_curves,
    angle_response,
    cosine_heatmap,
    dial,
    forest,
    norm_growth,
    sheet,
    sign_agreement,
)
from analyses.printed.tables import latex, markdown
from ss_lens import UserError
from ss_lens.experiments.dial.ways import ALL_SITES, HEADINGS, RANDOM
from tests.analyses.drawn import check_legend, check_texts, legend_of, mark

CLASSES = ("positive", "negative")
LONG = "a variant whose name needs more than a line of its own"


def sites(layers: int) -> list[str]:
    return [f"L{layer}.{stream}" for layer in range(layers) for stream in ("ln1_out", "ln2_out")]


def dial_table(angles: int = 8, score: float = 3.0) -> pd.DataFrame:
    rows = []
    for way, label in HEADINGS:
        for i in range(angles):
            angle = 360.0 * i / angles
            if way == ALL_SITES and i == 0:
                continue
            value = score * math.cos(math.radians(angle)) - 0.3 * len(way)
            rows.append(
                {
                    "way": way, "prompt_class": label, "angle_deg": angle,
                    "draws": 8 if way in RANDOM else 1, "refusal_score": value,
                    "refusal_score_low": value - 0.5, "refusal_score_high": value + 0.5,
                    "opening_mass": 0.4 if i == 2 else 0.9,
                    "opening_mass_low": 0.3, "opening_mass_high": 0.95,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def sign_table(layers: int = 28, prompts: int = 24) -> pd.DataFrame:
    n, known = 2 * layers, prompts > 1
    x = np.linspace(-0.1, 0.5, n)
    half = np.full(n, 0.05 if known else np.nan)
    return pd.DataFrame(
        {
            "site": sites(layers),
            "positive_mean": x, "positive_low": x - half, "positive_high": x + half,
            "negative_mean": -x, "negative_low": -x - half, "negative_high": half - x,
            "positive_share": np.linspace(0, 1, n), "negative_share": 1.0,
            "positive_sd": half, "negative_sd": half, "p_opposite": 0.5,
            "product": -(x**2), "opposite": True, "selected": x > 0.2,
            "n_positive": prompts, "n_negative": prompts,
        }
    )  # fmt: skip


def norm_table(streams: tuple[str, ...] = ("ln1_out", "ln2_out", "resid_post")) -> pd.DataFrame:
    rows = [
        {
            "site": f"L{layer}.{stream}", "layer": layer, "stream": stream, "prompt_class": label,
            "mean_norm": 10.0 * 1.1**layer, "low": 9.0, "high": 250.0,
            "growth": 1.1 if layer else math.nan,
        }
        for label in CLASSES
        for layer in range(28)
        for stream in streams
    ]  # fmt: skip
    return pd.DataFrame(rows)


def cosine_table(layers: int = 28) -> pd.DataFrame:
    names = sites(layers)
    rows = [
        {
            "site": a, "other_site": b, "is_direction_site": a == names[-1],
            "cosine": math.nan if names[0] in (a, b) else math.cos(i - j),
        }
        for (i, a), (j, b) in itertools.product(enumerate(names), repeat=2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


METRICS = {f"metric_{i}": f"metric {i} ↓" for i in range(8)}


def forest_table(variants: int = 13, value: float = 0.2) -> pd.DataFrame:
    names = ["full method", LONG, *(f"variant {i}" for i in range(variants - 2))]
    rows = [
        {
            "variant": name, "metric": metric, "mean": value * i, "low": value * i - 0.1,
            "high": value * i + 0.1, "settled": bool(i % 2),
        }
        for i, name in enumerate(names)
        for metric in METRICS
    ]  # fmt: skip
    return pd.DataFrame(rows)


def curve_table(variants: int = 11, angles: int = 36, value: float = 3.0) -> pd.DataFrame:
    names = ["full method", LONG, *(f"variant {i}" for i in range(variants - 2))]
    rows = [
        {
            "variant": name, "prompt_class": label, "draw": draw, "angle_deg": 360.0 * i / angles,
            "refusal_score": value * math.cos(2 * math.pi * i / angles + k + draw),
            "opening_mass": 0.4 if i % 7 == 3 else 0.9,
        }
        for k, name in enumerate(names)
        for label in CLASSES
        for draw in range(1 + k % 3)
        for i in range(angles)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def response_table(ways: int = 3, angles: int = 24) -> pd.DataFrame:
    rows = [
        {
            "way": f"rotate_by, sites of kind {way}", "prompt_class": label, "n": 24,
            "angle_deg": 360 * i // angles, "unsteered": 1.0,
            "refusal_score": way + math.cos(2 * math.pi * i / angles),
            "opening_mass": 0.4 if i % 7 == 3 else 0.9,
        }
        for way in range(ways)
        for label in CLASSES
        for i in range(angles)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(low=table["refusal_score"] - 0.2, high=table["refusal_score"] + 0.2)


USUAL: dict[str, Callable[[int], Figure]] = {
    "dial": lambda n: dial.figure(dial_table(), n),
    "sign_agreement": lambda n: sign_agreement.figure(sign_table(), n),
    "norm_growth": lambda n: norm_growth.figure(norm_table(), n),
    "cosine_heatmap": lambda n: cosine_heatmap.figure(cosine_table(), n),
    "forest": lambda n: forest.figure(forest_table(), METRICS, "full method", n),
    "angle_curves": lambda n: angle_curves.figure(curve_table(), "full method", columns=n),
    "angle_response": lambda n: angle_response.figure(response_table(), n),
}
NAN = math.nan
UNUSUAL: dict[str, Callable[[int], Figure]] = {
    "dial, NaN": lambda n: dial.figure(dial_table(score=NAN), n),
    "dial, 72 angles": lambda n: dial.figure(dial_table(72), n),
    "dial, one angle": lambda n: dial.figure(dial_table(1), n),
    "signs, one prompt": lambda n: sign_agreement.figure(sign_table(prompts=1), n),
    "signs, one layer": lambda n: sign_agreement.figure(sign_table(1), n),
    "signs, 80 layers": lambda n: sign_agreement.figure(sign_table(80), n),
    "norms, one stream": lambda n: norm_growth.figure(norm_table(("ln1_out",)), n),
    "cosines, one layer": lambda n: cosine_heatmap.figure(cosine_table(1), n),
    "cosines, 80 layers": lambda n: cosine_heatmap.figure(cosine_table(80), n),
    "forest, NaN": lambda n: forest.figure(forest_table(value=NAN), METRICS, "full method", n),
    "forest, two": lambda n: forest.figure(forest_table(2), METRICS, "full method", n),
    "curves, NaN": lambda n: angle_curves.figure(curve_table(value=NAN), "full method", columns=n),
    "curves, 72 angles": lambda n: angle_curves.figure(
        curve_table(2, 72), "full method", columns=n
    ),
    "response, nine ways": lambda n: angle_response.figure(response_table(9, 72), n),
}
BOTH = pytest.mark.parametrize("columns", [1, 2])


@pytest.mark.parametrize("name", [*USUAL, *UNUSUAL])
@BOTH
def test_no_text_is_small_cut_off_or_over_another(name: str, columns: int) -> None:
    figure = {**USUAL, **UNUSUAL}[name](columns)
    check_texts(figure, columns)
    check_legend(figure)


@pytest.mark.parametrize("name", ["dial", "angle_response", "angle_curves", "sign_agreement"])
def test_every_series_stands_in_the_legend_and_is_told_apart_in_grey(name: str) -> None:
    figure = USUAL[name](2)
    legend, names = legend_of(figure)
    assert len({*names}) == len(names)
    lines = [line for line in legend.get_lines() if isinstance(line, Line2D)]
    assert len({mark(line) for line in lines}) == len(lines)
    explained = {mark(line)[:3] for line in lines} | {("-", "None", False)}
    open_ones = {True: 0, False: 0}
    for axes in figure.axes:
        for line in axes.get_lines():
            dashes, marker, hollow, _ = mark(line)
            open_ones[hollow] += 1
            alike = {found[1] for found in explained}
            assert marker in alike or hollow, marker
            assert dashes is None or dashes in {found[0] for found in explained}, dashes
    if open_ones[True]:
        assert any("holds 0" in text for text in names)


def test_the_dial_names_all_ways_and_marks() -> None:
    _, names = legend_of(USUAL["dial"](2))
    assert names[: len(HEADINGS)] == [*HEADINGS.values()]
    assert names[len(HEADINGS) :] == [
        "random planes of each kind: 2.5–97.5 % of 8 draws",
        "opening mass below 0.5",
        "0 nats; a mass of 0.5",
    ]
    looks = [*dial_looks.looks().values()]
    assert len({(look.symbol, look.dash, i > 4) for i, look in enumerate(looks)}) == len(looks)


def lightness(colour: str) -> float:
    """CIE L* of a colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    y = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_diverging_scale_darkens_all_the_way_and_is_grey_in_the_middle() -> None:
    shades = [lightness(colour) for colour in style.DIVERGING]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] - shades[-1] > 60
    assert len(style.DIVERGING) % 2 == 1
    red, green, blue = to_rgb(style.DIVERGING[len(style.DIVERGING) // 2])
    assert red == green == blue


def test_looks_of_up_to_42_series_differ_in_grey() -> None:
    looks = [*style.series(str(i) for i in range(42)).values()]
    assert len({(look.symbol, look.dash) for look in looks}) == 42
    assert {look.symbol for look in looks} <= {*sheet.MARKERS}
    assert {look.dash for look in looks} <= {*sheet.LINES}


def test_a_class_mean_is_open_where_its_own_interval_holds_zero() -> None:
    table = sign_table(2).assign(
        positive_mean=0.1, positive_low=[-0.1, 0.05, 0.05, math.nan], positive_high=0.2,
        negative_mean=-0.1, negative_low=-0.2, negative_high=[-0.05, -0.05, 0.1, -0.05],
    )  # fmt: skip
    means = sign_agreement.figure(table).axes[0]
    hollow = [line for line in means.get_lines() if mark(line)[2]]
    assert [[*np.asarray(line.get_xdata())] for line in hollow] == [[0.0, 1.5], [1.0]]
    signs = sign_agreement.brief(table)["signs"].tolist()
    assert signs == ["not settled", "opposite", "not settled", "not settled"]


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
@BOTH
def test_a_file_is_the_same_to_the_byte_and_has_no_date(
    suffix: str, columns: int, tmp_path: Path
) -> None:
    for name in ("dial", "cosine_heatmap"):
        written = []
        for i in range(2):
            path = tmp_path / f"{i}"
            sheet.save(USUAL[name](columns), path, suffix, "a figure")
            written.append(path.read_bytes())
        assert written[0] == written[1]
        assert not re.search(rb"CreationDate|<dc:date>|Matplotlib v|matplotlib\.org", written[0])


def test_fonts_are_embedded_or_drawn(tmp_path: Path) -> None:
    sheet.save(USUAL["dial"](1), tmp_path / "a.pdf", "pdf", "a figure")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    sheet.save(USUAL["dial"](1), tmp_path / "a.svg", "svg", "a figure")
    svg = (tmp_path / "a.svg").read_text("utf-8")
    assert "<text" not in svg
    assert "font-family" not in svg
    assert 'width="234pt"' in svg


def test_another_process_with_other_defaults_writes_the_same_and_starts_none(
    tmp_path: Path,
) -> None:
    """No torch, no Plotly browser and no process; the user's own style has no say."""
    code = f"""
import os, subprocess, sys
import matplotlib
matplotlib.rcParams.update({{"font.size": 30, "axes.grid": True, "svg.fonttype": "none"}})
def refused(*args, **kwargs):
    raise AssertionError("no process may be started")
subprocess.Popen.__init__ = os.posix_spawn = os.fork = os.system = refused
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import importlib.util
spec = importlib.util.spec_from_file_location("these", {__file__!r})
these = importlib.util.module_from_spec(spec)
spec.loader.exec_module(these)
for name, make in these.USUAL.items():
    for suffix in ("pdf", "svg"):
        path = these.Path({str(tmp_path)!r}) / f"{{name}}.{{suffix}}"
        these.sheet.save(make(1), path, suffix, name)
assert not {{"torch", "transformers", "kaleido", "matplotlib.pyplot"}} & {{*sys.modules}}
"""
    environment = {"PATH": "", "PYTHONHASHSEED": "7", "MPLCONFIGDIR": mpl.get_cachedir()}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=environment)
    for name in ("dial", "cosine_heatmap", "forest"):
        for suffix in ("pdf", "svg"):
            sheet.save(USUAL[name](1), tmp_path / "here", suffix, name)
            there = (tmp_path / f"{name}.{suffix}").read_bytes()
            assert (tmp_path / "here").read_bytes() == there, (name, suffix)


def test_a_latex_table_is_plain_ascii_with_booktabs() -> None:
    tables = {
        "dial": dial.brief(dial_table()),
        "dial of 36": dial.brief(dial_table(36)),
        "signs": sign_agreement.brief(sign_table()),
        "norms": norm_growth.brief(norm_table()),
        "cosines": cosine_heatmap.brief(cosine_table()),
        "forest": forest.brief(forest_table(), METRICS, "full method"),
        "curves": angle_curves.brief(curve_table(), "full method"),
        "response": angle_response.brief(response_table()),
    }
    for name, table in tables.items():
        assert len(table), name
        text = latex(table, f"{dial.CAPTION} 100 % of a_b", name)
        assert text.isascii(), name
        assert r"\toprule" in text
        assert r"\bottomrule" in text
        assert r"100 \% of a\_b" in text
        rows = [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(table.columns) - 1}
        assert not re.search(r"(?<![\w{-])-\d", text), name
        lines = markdown([*table.columns], table.itertuples(index=False)).splitlines()
        assert len(lines) == len(table) + 2
    assert tables["dial"].columns.tolist()[:3] == ["way", "0°", "45°"]
    assert tables["dial of 36"].columns.tolist()[:2] == ["θ", "rotate_by, steered sites"]


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_static_formats_are_drawn_for_print_where_there_is_a_form_for_it(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def browser(*_: object) -> None:
        raise AssertionError("no browser may be started")

    monkeypatch.setattr(output, "write", browser)
    table = dial_table()
    make = partial(output.printed, "dial", "a model", table)
    output.save(tmp_path, "dial", table, go.Figure(), [suffix], make)
    assert {path.name for path in tmp_path.iterdir()} == {"dial.csv", f"dial.{suffix}"}


def test_the_set_for_papers_is_both_widths_with_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, chosen = dial_table(), output.checked(None, paper=True)
    make = partial(output.printed, "dial", "a model", table)
    output.save(tmp_path, "dial", table, go.Figure(), chosen, make)
    output.save(tmp_path, "other", table, go.Figure(), chosen)
    written = {path.name for path in (tmp_path / "paper").iterdir()}
    widths = {f"dial_{n}col.{suffix}" for n in (1, 2) for suffix in ("pdf", "svg")}
    assert written == {*widths, "dial.tex", "dial.md"}
    assert "Data: a model." in (tmp_path / "paper" / "dial.tex").read_text("utf-8")
    assert "other has no form for print and is left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--paper and --format svg were both given.*run twice"):
        output.checked(["svg"], paper=True)


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'need Matplotlib.*pip install "ss_lens\[paper\]"'):
        output.printed("dial", "a model", dial_table())
