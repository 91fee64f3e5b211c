"""The comparison at equal divergence in print: score against divergence, a panel per class."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analyses import style
from analyses.budget.figures import reached
from analyses.printed import sheet

CAPTION = (
    "Mean refusal score against the KL divergence from the unsteered model, with 95 % intervals, "
    "each family at the strength that dev gives the budget."
)


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A panel per class, a colour and marker per family; in one column below each other.

    Args:
        table: from :func:`analyses.budget.measure`.
        columns: of the page, one or two.
    """
    labels = [*dict.fromkeys(table["prompt_class"])]
    drawn = sheet.blank(columns, 3.1 if columns == 2 else 1.3 + 1.9 * len(labels))
    grid = (1, len(labels)) if columns == 2 else (len(labels), 1)
    panels = drawn.subplots(*grid, sharey=True, sharex=True, squeeze=False)
    looks = style.series(table["family"])
    crossed, absent = False, {*looks}
    for axes, label in zip(panels.flat, labels, strict=True):
        of_class = table.loc[table["prompt_class"] == label]
        for family, rows in of_class.groupby("family", sort=False):
            points = reached(rows)
            if points.empty:
                continue
            absent.discard(str(family))
            crossed |= _points(axes, points, looks[str(family)])
        sheet.level(axes, float(of_class["unsteered"].iloc[0]))
        for budget in dict.fromkeys(of_class["budget"]):
            axes.axvline(
                budget, color=sheet.GREY, linestyle=sheet.LINES["dot"], linewidth=0.8, zorder=0.5
            )
        axes.set_title(f"{label} prompts")
        axes.set_ylabel("refusal score (nats)" if axes in panels[:, 0] else "")
    _scale(panels.flat[0], table, columns)
    for axes in panels[-1]:
        axes.set_xlabel("KL from unsteered (nats per token)")
    entries: list[tuple[Artist, str]] = [
        (sheet.key(look), f"{family} (not reached)" if family in absent else family)
        for family, look in looks.items()
    ]
    entries += [(sheet.BAR_KEY, "95 % intervals"), (sheet.LEVEL_KEY, "unsteered; budgets")]
    if crossed:
        entries.append((sheet.CROSS_KEY, sheet.CROSS_TEXT))
    sheet.legend(drawn, entries)
    return drawn


def _points(axes: Axes, points: pd.DataFrame, look: style.Look) -> bool:
    """The points of a family; whether any is crossed out."""
    x, y = points["kl"], points["refusal_score"]
    axes.hlines(y, points["kl_low"], points["kl_high"], color=look.colour, linewidth=0.8)
    sheet.bars(axes, x, points["low"], points["high"], look.colour)
    sheet.curve(axes, x, y, look)
    return sheet.crosses(axes, x, y, points["opening_mass"])


def _scale(axes: Axes, table: pd.DataFrame, columns: int) -> None:
    """A logarithmic axis with plain numbers, few enough to stand beside each other."""
    ends = table[["kl", "kl_low", "kl_high", "budget"]].to_numpy(float)
    ends = ends[np.isfinite(ends) & (ends > 0)]
    low, high = float(ends.min()) / 1.3, float(ends.max()) * 1.3
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = np.log10(high / low)
    few = (1, 2, 5) if decades < 2 else (1, 3) if decades < 2.5 * columns else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=few))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """Per budget and family its strength, and per class the score and its difference."""
    rows = []
    for _, group in table.groupby(["budget", "family"], sort=False):
        first = group.iloc[0]
        cells: dict[str, object] = {
            "family": first["family"],
            "budget": f"{first['budget']:g}",
            "strength": _number(first["strength"], "{:.4g}"),
            "KL": _interval(first, "kl", "kl_low", "kl_high", "{:.3g}"),
        }
        for row in group.to_dict("records"):
            label = row["prompt_class"]
            cells[f"{label} score"] = _interval(row, "refusal_score", "low", "high", "{:+.2f}")
            cells[f"{label} opening mass"] = _number(row["opening_mass"], "{:.2f}")
        rows.append(cells)
    return pd.DataFrame(rows)


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else form.format(value)


def _interval(row: pd.Series | dict, middle: str, low: str, high: str, form: str) -> str:
    values = (row[middle], row[low], row[high])
    return "not reached" if np.isnan(values[0]) else f"{form} [{form}, {form}]".format(*values)
