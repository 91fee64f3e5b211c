"""The norm audit in print: what each operator does to norms, by basis and arithmetic."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.norm_audit.conditions import BASES, BENT, EXACT
from analyses.norm_audit.figures import CONDITIONS, FLOOR
from analyses.printed import sheet
from analyses.style import Look

CAPTION = (
    "Relative change of the norm under each operator, by the basis of the plane and the "
    "arithmetic, and the resultant length of the in-plane phases before and after (1: all alike)."
)
PER_ROW = {1: 2, 2: 4}
SHIFTS = (-0.27, -0.09, 0.09, 0.27)
ZERO = 10.0**FLOOR
TICKS = {
    1: {ZERO: "0", 1e-9: "1e−9", 1.0: "1"},
    2: {ZERO: "0", 1e-12: "1e−12", 1e-6: "1e−6", 1.0: "1"},
}
BEFORE = Look("0.45", "solid", "circle")
AFTER = Look("black", "solid", "triangle-up")
SHOWN = (
    (EXACT, "float64", "float64", "exact"),
    (EXACT, "float32", "float32", "float32"),
    (EXACT, "bfloat16", "float32", "bfloat16"),
    (BENT, "float64", "float64", "bent basis"),
    (BENT, "bfloat16", "bfloat16", "bent basis, all bfloat16"),
)
"""The columns of the table: the basis, the dtype, the arithmetic, and what they are called."""


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A panel per basis, a line per operator; the last panel has the phases.

    Args:
        table: from :func:`analyses.norm_audit.measure`.
        columns: of the page, one or two.
    """
    settings = [*dict.fromkeys(table["setting"])]
    across = PER_ROW[columns]
    down = (len(BASES) + 1) // across
    drawn = sheet.blank(columns, 0.85 + down * (0.55 + 0.27 * max(len(settings), 3)))
    panels = drawn.subplots(down, across, sharey=True, squeeze=False)
    for axes, basis in zip(panels.flat, BASES, strict=False):
        _changes(axes, table.loc[table["basis"] == basis], settings)
        axes.set_title(f"basis {basis}" if columns == 2 else basis)
        axes.set_xticks([*TICKS[columns]], [*TICKS[columns].values()])
        axes.minorticks_off()
        axes.set_xlabel("change of the norm")
    exact = table.loc[(table["basis"] == EXACT) & (table["dtype"] == "float64")]
    _phases(panels.flat[len(BASES)], exact, settings)
    for axes in panels[:, 0]:
        axes.set_yticks(range(len(settings)), [_label(setting) for setting in settings])
        axes.set_ylim(len(settings) - 0.45, -0.55)
    for axes in panels.flat:
        axes.tick_params(axis="y", length=0)
        for edge in range(1, len(settings)):
            axes.axhline(edge - 0.5, color="0.88", linewidth=0.5, zorder=0)
    entries: list[tuple[Artist, str]] = [
        (_key(colour, symbol), name) for *_, name, colour, symbol in CONDITIONS
    ]
    entries += [
        (sheet.ACROSS_KEY, "median to largest change"),
        (Line2D([], [], color="0.6", linewidth=0.6), "no change at all"),
        (sheet.key(BEFORE, linestyle="none", markerfacecolor="white"), "phases before"),
        (sheet.key(AFTER, linestyle="none"), "phases after"),
    ]
    sheet.legend(drawn, entries)
    return drawn


def _changes(axes: Axes, rows: pd.DataFrame, settings: list[str]) -> None:
    for shift, (dtype, arithmetic, _, colour, symbol) in zip(SHIFTS, CONDITIONS, strict=True):
        here = rows.loc[(rows["dtype"] == dtype) & (rows["arithmetic"] == arithmetic)]
        y = np.array([settings.index(setting) + shift for setting in here["setting"]])
        middle, most = (here[f"norm_{name}"].clip(lower=ZERO) for name in ("median", "max"))
        axes.hlines(y, middle, most, color=colour, linewidth=0.9)
        axes.plot(middle, y, **sheet.line(Look(colour, "solid", symbol), linestyle="none"))
    axes.set_xscale("log")
    axes.set_xlim(ZERO / 10, 10)
    axes.axvline(ZERO, color="0.6", linewidth=0.6, zorder=0)


def _phases(axes: Axes, rows: pd.DataFrame, settings: list[str]) -> None:
    y = [settings.index(setting) for setting in rows["setting"]]
    before, after = rows["phase_before"], rows["phase_after"]
    axes.hlines(y, before, after, color="0.75", linewidth=0.8, zorder=0)
    hollow = {"linestyle": "none", "markerfacecolor": "white", "markersize": 4.4}
    axes.plot(before, y, **sheet.line(BEFORE, **hollow))
    axes.plot(after, y, **sheet.line(AFTER, linestyle="none", markersize=3))
    axes.set_title("phases")
    axes.set_xlabel("resultant length")
    axes.set_xlim(-0.08, 1.08)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def _key(colour: str, symbol: str) -> Line2D:
    return sheet.key(Look(colour, "solid", symbol), linestyle="none")


def _label(setting: str) -> str:
    """``RotateBy(angle_deg=120.0)`` on two lines, the strength below."""
    name, _, strength = setting.rstrip(")").partition("(")
    return f"{name}\n{textwrap.shorten(strength, 24, placeholder=' …')}" if strength else name


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """Per operator the largest relative change of a norm in each condition, and the phases."""
    keyed = table.set_index(["setting", "basis", "dtype", "arithmetic"])["norm_max"]
    exact = table.loc[(table["basis"] == EXACT) & (table["dtype"] == "float64")]
    rows = []
    for row in exact.to_dict("records"):
        cells = {"operator": str(row["setting"])}
        for basis, dtype, arithmetic, name in SHOWN:
            value = keyed.get((row["setting"], basis, dtype, arithmetic))
            cells[name] = "" if value is None else f"{value:.1e}"
        cells["phases"] = f"{row['phase_before']:.2f} → {row['phase_after']:.2f}"
        rows.append(cells)
    return pd.DataFrame(rows)
