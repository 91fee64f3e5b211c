"""The figures of analyses of their own for print: whole at both widths, told apart in grey."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure

from analyses import output
from analyses.budget import printed as budget
from analyses.confounds import printed as confounds
from analyses.logit_lens import printed as logit_lens, printed_tokens
from analyses.norm_audit import printed as norm_audit
from analyses.norm_audit.conditions import BASES, EXACT
from analyses.printed import sheet
from analyses.printed.tables import PAGE, columns_that_fit, latex, latex_parts, width_of
from analyses.site_effects import printed as site_effects
from analyses.site_effects.conditions import ALL, LEFT_OUT, ONLY, RANDOM
from analyses.stability import printed_planes, printed_sites
from analyses.token_projections import printed as token_projections
from tests.analyses.drawn import check_legend, check_texts, legend_of, mark, texts

CLASSES = ("positive", "negative")
SETTINGS = (
    *("RotateBy(angle_deg=120.0)", "RotateTo(angle_deg=120.0)", "Ablate()", "Reflect()"),
    *("RotateToIfAligned(angle_deg=120.0)", "SetAngle(angle_deg=120.0)", "Add(alpha=1.0)"),
    *("RotateScale(angle_deg=120.0, scale=1.0)", "RotateToward(angle_deg=30.0)"),
)


def sites(layers: int) -> list[str]:
    return [f"L{layer}.{stream}" for layer in range(layers) for stream in ("ln1_out", "ln2_out")]


def audit_table(settings: tuple[str, ...] = SETTINGS) -> pd.DataFrame:
    rows = []
    for i, (setting, basis) in enumerate(product(settings, BASES)):
        for dtype, arithmetic in (
            *(("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")),
            ("bfloat16", "bfloat16"),
        ):
            if arithmetic == "bfloat16" and basis == EXACT:
                continue
            size = {"float64": 1e-16, "float32": 1e-7, "bfloat16": 1e-3}[dtype]
            rows.append(
                {
                    "operator": setting.partition("(")[0], "setting": setting, "basis": basis,
                    "basis_deviation": 0.006, "dtype": dtype, "arithmetic": arithmetic,
                    "norm_median": 0.0 if i % 4 == 0 else size, "norm_q95": 2 * size,
                    "norm_max": 0.8 if "Add" in setting else 5 * size, "phase_before": 0.4,
                    "phase_after": 1.0 if "To" in setting else 0.4, "n": 100,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def site_table(layers: int = 28) -> pd.DataFrame:
    n, names = 2 * layers, sites(layers)
    x = np.linspace(-0.1, 0.5, n)
    parts = []
    for kind, share in (("bootstrap", x.clip(0, 1)), ("shuffled", 0 * x + 0.1)):
        table = pd.DataFrame(
            {
                "kind": kind, "n_positive": 96, "n_negative": 96, "site": names,
                "layer": [i // 2 for i in range(n)], "stream": ["ln1_out", "ln2_out"] * layers,
                "selected": x > 0.2, "is_direction_site": [i == n - 1 for i in range(n)],
                "share_selected": share, "share_direction": 0.1,
            }
        )  # fmt: skip
        for label, side in (("positive", 1), ("negative", -1)):
            table[label] = side * x
            for interval, half in (("own", 0.06), ("fixed", 0.02)):
                table[f"{label}_{interval}_low"] = side * x - half
                table[f"{label}_{interval}_high"] = side * x + half
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def draw_table(sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256)) -> pd.DataFrame:
    kinds = [("full", 416), ("bootstrap", 416), ("shuffled", 416), ("random", 416)]
    kinds += [("subsample", size) for size in sizes]
    rows = [
        {
            "kind": kind, "n_positive": size, "n_negative": size, "draw": draw,
            "angle_1_deg": 5.0 + draw, "angle_2_deg": 30.0 + 2 * draw, "b1_angle_deg": 9.0 + draw,
            "n_selected": 20 + draw % 7, "direction_site": "L3.ln1_out",
        }
        for kind, size in kinds
        for draw in range(1 if kind == "full" else 24)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def area_table(surface: float = 0.95) -> pd.DataFrame:
    rows = [
        *(("length", "surface", surface - 0.2), ("character n-grams", "surface", surface)),
        ("length and n-grams", "surface", surface),
        ("activations, best site", "activations", 0.99),
        ("activations, direction site", "activations", 0.985),
    ]
    table = pd.DataFrame(rows, columns=["reading", "kind", "auroc"])
    return table.assign(
        **{"low": table["auroc"] - 0.03, "high": (table["auroc"] + 0.03).clip(upper=1)},
        **{"n_positive": 96, "n_negative": 96, "n_folds": 5},
        sites=["" if kind == "surface" else "L12.ln1_out (3)" for kind in table["kind"]],
    )


FAMILIES = (
    *("rotate_by, discriminative sites", "rotate_by, all sites", "add, along the direction"),
    *("rotate_to, discriminative sites", "set_angle, discriminative sites"),
    *("add, against the direction", "ablate, discriminative sites"),
)


def budget_table(budgets: tuple[float, ...] = (0.05, 0.2)) -> pd.DataFrame:
    rows = []
    for (level, (i, family)), label in product(product(budgets, enumerate(FAMILIES)), CLASSES):
        kl = math.nan if i == 2 else 0.7 if i == 6 else level * (1 + 0.1 * i)
        score = math.nan if i == 2 else (3.0 - i if label == "positive" else -3.0 - 0.1 * i)
        rows.append(
            {
                "budget": level, "family": family, "prompt_class": label,
                "strength": math.nan if i in (2, 6) else 30.0 + i, "operator": "RotateBy(…)",
                "kl": kl, "kl_low": 0.8 * kl, "kl_high": 1.3 * kl, "refusal_score": score,
                "low": score - 0.4, "high": score + 0.3, "opening_mass": 0.4 if i == 4 else 0.9,
                "unsteered": 3.0 if label == "positive" else -3.0,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def effect_table(layers: int = 28, draws: int = 2, effect: float = 0.3) -> pd.DataFrame:
    rows = []
    for label, side in (("positive", -1.0), ("negative", 0.2)):
        rows.append((ALL, "", 0, label, 20 * side * effect))
        for i, site in enumerate(sites(layers)[layers:]):
            value = side * effect * math.sin(i)
            rows += [(ONLY, site, 0, label, value), (LEFT_OUT, site, 0, label, value / 3)]
            rows += [(RANDOM, site, draw, label, 0.02 * draw) for draw in range(draws)]
    table = pd.DataFrame(rows, columns=["kind", "site", "draw", "prompt_class", "effect"])
    low = 0.4 if layers == 1 else 0.9
    ends = {"low": table["effect"] - 0.05, "high": table["effect"] + 0.05}
    return table.assign(**ends, refusal_score=0.0, opening_mass=low, n=5)


TOKENS = (" I", "Sure", "\n\n", " 好的", "…unbelievably", "<|im_end|>", "$x$", " désolé")


def lens_table(layers: int = 28, n: int = 16) -> pd.DataFrame:
    rows = []
    for label, (i, angle) in product(CLASSES, enumerate((math.nan, 90.0, 180.0))):
        for layer in range(-1, layers):
            score = (3 - 2 * i) * (layer + 1) / layers * (1 if label == "positive" else -0.5)
            half = 0.5 if n > 1 else math.nan
            rows.append(
                {
                    "prompt_class": label, "angle_deg": angle, "layer": layer,
                    "steers": int(layer >= layers // 2), "refusal_score": score,
                    "low": score - half, "high": score + half,
                    "opening_mass": (layer + 1) / layers, "n": n,
                    "top_1": TOKENS[(layer + i) % len(TOKENS)], "p_1": 0.5,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def token_table(n_sites: int = 3, n_prompt: int = 24, n_answer: int = 8) -> pd.DataFrame:
    """Tokens that turn evenly through the circle, the steered ones by a half turn more."""
    rows = []
    for i, condition in enumerate(("unsteered", "steered")):
        for site in sites(n_sites)[:n_sites]:
            for position in range(n_prompt + n_answer - 2 * i):  # a steered answer is shorter
                angle = (30.0 * position + 180 * i) % 360
                size = 0.1 * (position % 5)
                rows.append(
                    {
                        "prompt_class": "negative", "prompt_index": 0, "condition": condition,
                        "site": site, "steered_site": True, "position": position,
                        "token": TOKENS[(position + i) % len(TOKENS)],
                        "is_prompt": position < n_prompt, "norm": 10.0,
                        "cos_1": size * math.cos(math.radians(angle)),
                        "cos_2": size * math.sin(math.radians(angle)), "in_plane_norm": 10 * size,
                        "angle_deg": angle if size else math.nan,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


USUAL: dict[str, Callable[[int], Figure]] = {
    "norm_audit": lambda n: norm_audit.figure(audit_table(), n),
    "stability_sites": lambda n: printed_sites.figure(site_table(), n),
    "stability_planes": lambda n: printed_planes.figure(draw_table(), n),
    "confounds": lambda n: confounds.figure(area_table(), n),
    "budget": lambda n: budget.figure(budget_table(), n),
    "site_effects": lambda n: site_effects.figure(effect_table(), n),
    "logit_lens": lambda n: logit_lens.figure(lens_table(), n),
    "logit_lens_tokens": lambda n: printed_tokens.figure(lens_table(), n),
    "token_projections": lambda n: token_projections.figure(token_table(), n),
}
UNUSUAL: dict[str, Callable[[int], Figure]] = {
    "audit of two": lambda n: norm_audit.figure(audit_table(SETTINGS[:2]), n),
    "sites, one layer": lambda n: printed_sites.figure(site_table(1), n),
    "sites, 80 layers": lambda n: printed_sites.figure(site_table(80), n),
    "planes, no subsample": lambda n: printed_planes.figure(draw_table(()), n),
    "confounds, surface alone": lambda n: confounds.figure(area_table().head(3), n),
    "confounds, suspect": lambda n: confounds.figure(area_table(0.98), n),
    "budget, one": lambda n: budget.figure(budget_table((0.1,)), n),
    "budget, wide": lambda n: budget.figure(budget_table((0.0001, 0.02, 1.0, 9.0)), n),
    "effects, one layer": lambda n: site_effects.figure(effect_table(1, 0), n),
    "effects of nothing": lambda n: site_effects.figure(effect_table(effect=0.0), n),
    "lens, one prompt": lambda n: logit_lens.figure(lens_table(4, 1), n),
    "lens, 80 layers": lambda n: logit_lens.figure(lens_table(80), n),
    "tokens, 80 layers": lambda n: printed_tokens.figure(lens_table(80), n),
    "projections, one site": lambda n: token_projections.figure(token_table(1, 5, 2), n),
    "projections, a long prompt": lambda n: token_projections.figure(token_table(3, 300, 8), n),
    "projections, 40 sites": lambda n: token_projections.figure(token_table(40), n),
    "projections of nothing": lambda n: token_projections.figure(
        token_table().assign(cos_1=0.0, cos_2=0.0, in_plane_norm=0.0, angle_deg=math.nan), n
    ),
}
BOTH = pytest.mark.parametrize("columns", [1, 2])


@pytest.mark.parametrize("name", [*USUAL, *UNUSUAL])
@BOTH
def test_no_text_is_small_cut_off_or_over_another(name: str, columns: int) -> None:
    figure = {**USUAL, **UNUSUAL}[name](columns)
    check_texts(figure, columns)
    if "tokens" not in name:  # whose scale says what shades mean
        check_legend(figure)


@pytest.mark.parametrize(
    "name", ["budget", "confounds", "logit_lens", "norm_audit", "site_effects", "stability_sites"]
)
def test_every_mark_stands_in_the_legend_and_is_told_apart_in_grey(name: str) -> None:
    figure = USUAL[name](2)
    legend, names = legend_of(figure)
    assert len({*names}) == len(names)
    lines = legend.get_lines()
    assert len({mark(line) for line in lines}) == len(lines)  # type: ignore[arg-type]
    shown = {line.get_marker() for line in lines} | {"None"}
    drawn = [line for axes in figure.axes for line in axes.get_lines() if len(line.get_xydata())]
    assert {line.get_marker() for line in drawn} <= shown


def test_a_site_whose_interval_holds_zero_is_open() -> None:
    table = effect_table(2, 0)
    alone = table[(table["kind"] == ONLY) & (table["prompt_class"] == "positive")]
    held = ((alone["low"] <= 0) & (alone["high"] >= 0)).tolist()
    assert held == [True, False]
    upper = site_effects.figure(table).axes[0]
    hollow = [line for line in upper.get_lines() if mark(line)[2] and line.get_color() != "black"]
    assert sum(len(np.atleast_1d(line.get_xdata())) for line in hollow[:1]) == 1


def test_the_lowest_layer_is_below_and_long_models_are_thinned_up_to_the_last() -> None:
    panel = printed_tokens.figure(lens_table(80)).axes[0]
    layers = [int(label.get_text()) for label in panel.get_yticklabels()]
    assert layers[-1] == 79
    assert len(layers) <= printed_tokens.MOST
    assert {b - a for a, b in pairwise(layers)} == {3}
    assert panel.get_ylim()[0] < panel.get_ylim()[1]


def test_a_letter_that_the_font_lacks_is_a_box_and_no_warning() -> None:
    shown = {text.get_text() for text in texts(USUAL["logit_lens_tokens"](2))}
    assert {"·▯▯", "·désolé", "<|im_end|>", "⏎⏎", "▯x▯"} <= shown


def test_tokens_are_turned_by_the_same_angle_in_every_panel_and_the_last_ones_are_kept() -> None:
    table = token_table(2, 300, 8)
    panels = token_projections.figure(table).axes[:2]
    arrows = [[text.get_text() for text in panel.texts] for panel in panels]
    kept = table.query("position >= 308 - @token_projections.MOST")
    counts = kept.groupby("condition", sort=False).size().tolist()
    assert [*map(len, arrows)] == counts == [128, 124]  # each token at both sites
    opposite = {"": "", **dict(zip("→↗↑↖←↙↓↘", "←↙↓↘→↗↑↖", strict=True))}
    still = [[a for a in row if a] for row in zip(*[iter(arrows[0])] * 2, strict=True)]
    turned = [[a for a in row if a] for row in zip(*[iter(arrows[1])] * 2, strict=True)]
    assert [[opposite[a] for a in row] for row in still[: len(turned)]] == turned
    (edge,) = {line.get_ydata()[0] for panel in panels for line in panel.get_lines()}  # type: ignore[index]
    assert edge == 299.5


def test_the_audit_puts_no_change_on_the_line_of_zero() -> None:
    panel = USUAL["norm_audit"](2).axes[0]
    x = np.concatenate([np.asarray(line.get_xdata(), float) for line in panel.get_lines()[:4]])
    assert x.min() == norm_audit.ZERO
    assert panel.get_xticklabels()[0].get_text() == "0"


BRIEF = {
    "norm_audit": lambda: norm_audit.brief(audit_table()),
    "stability_sites": lambda: printed_sites.brief(site_table()),
    "stability_planes": lambda: printed_planes.brief(draw_table()),
    "confounds": lambda: confounds.brief(area_table()),
    "budget": lambda: budget.brief(budget_table()),
    "site_effects": lambda: site_effects.brief(effect_table()),
    "logit_lens": lambda: logit_lens.brief(lens_table()),
    "logit_lens_tokens": lambda: printed_tokens.brief(lens_table()),
    "token_projections": lambda: token_projections.brief(token_table()),
}


@pytest.mark.parametrize("name", BRIEF)
def test_a_table_for_latex_is_plain_ascii_and_fits_a_page(name: str) -> None:
    table = BRIEF[name]()
    text = latex_parts(table, printed_tokens.CAPTION, name)
    assert text.isascii()
    assert text.count(r"\label{tab:") == len(columns_that_fit(table))
    assert r"\bottomrule" in text
    assert f"tab:{name}" in text
    assert not re.search(r"(?<![\w{-])-\d", text.replace("tab:", ""))


def test_a_wide_table_is_split_into_tables_that_fit_with_its_first_column_in_each() -> None:
    wide = pd.DataFrame(
        {"way": ["a", "b"], **{f"{i}°": ["+1.00 [0.00, 2.00]"] * 2 for i in range(9)}}
    )
    parts = columns_that_fit(wide)
    assert len(parts) > 1
    assert all(part.columns[0] == "way" and width_of(part) <= PAGE for part in parts)
    assert [name for part in parts for name in part.columns[1:]] == [*wide.columns[1:]]
    assert {len(part.columns) for part in parts} <= {5, 6}  # about as many in each
    text = latex_parts(wide, "A caption.", "wide")
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == len(parts)
    assert r"\label{tab:wide}" in text
    assert r"\label{tab:wide-2}" in text
    assert "A caption. (continued)" in text
    narrow = wide[["way", "0°"]]
    assert r"\end{table}" in latex(narrow, "A caption.", "narrow")
    assert latex_parts(narrow, "A caption.", "narrow") == latex(narrow, "A caption.", "narrow")


def test_one_column_that_is_wider_than_a_page_stands_alone() -> None:
    table = pd.DataFrame({"a": ["x"], "b": ["word " * 40], "c": ["y"]})
    assert [[*part.columns] for part in columns_that_fit(table)] == [["a", "b"], ["a", "c"]]


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_a_file_is_the_same_to_the_byte(suffix: str, tmp_path: Path) -> None:
    for name in ("norm_audit", "logit_lens_tokens", "stability_planes"):
        for i in (0, 1):
            sheet.save(USUAL[name](1), tmp_path / str(i), suffix, name)
        assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_an_analysis_of_its_own_writes_the_set_for_papers(tmp_path: Path) -> None:
    table, chosen = area_table(), output.checked(None, paper=True)
    make = partial(output.printed, "confounds.printed", "a model", table)
    output.save(tmp_path, "confounds", table, go.Figure(), chosen, make)
    written = {path.name for path in (tmp_path / "paper").iterdir()}
    widths = {f"confounds_{n}col.{suffix}" for n in (1, 2) for suffix in ("pdf", "svg")}
    assert written == {*widths, "confounds.tex", "confounds.md"}
