"""The forest plot in print: every variant beside the full method, a panel per metric."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyses.printed import sheet
from analyses.style import FOREST_LOOKS, LEVEL

CAPTION = (
    "Means with 95 % intervals over test prompts, compared with the full method on the same "
    "prompts (Holm's correction within a metric and class)."
)
PER_ROW = {1: 2, 2: 4}
NAME_WIDTH = {1: 22, 2: 34}
NAMES = {
    "reference": "full method",
    "differs": f"differs from it (p < {LEVEL:g})",
    "open": "open: not shown to differ",
}


@sheet.in_print
def figure(
    table: pd.DataFrame, headings: Mapping[str, str], reference: str, columns: int = 2
) -> Figure:
    """A panel per metric, a line per variant; open where it is not shown to differ.

    Args:
        table: of one class of prompts, from :func:`analyses.ablations.measure`.
        headings: the metrics to draw and what stands above their panels.
        reference: the variant that the others are compared with, dotted.
        columns: of the page, one or two.
    """
    variants = [*dict.fromkeys(table["variant"])]
    across = min(PER_ROW[columns], len(headings))
    down = math.ceil(len(headings) / across)
    names = [textwrap.fill(name, NAME_WIDTH[columns]) for name in variants]
    heights = [1 + name.count("\n") for name in names]
    lines = sum(heights)
    places = np.cumsum(heights) - np.array(heights) / 2 - 0.5
    drawn = sheet.blank(columns, 0.4 + down * (0.5 + 0.115 * max(lines, 4)))
    panels = drawn.subplots(down, across, sharey=True, squeeze=False)
    for axes, (metric, heading) in zip(panels.flat, headings.items(), strict=False):
        rows = table.loc[table["metric"] == metric]
        _panel(axes, rows, dict(zip(variants, places, strict=True)), reference)
        axes.set_title(heading)
    for axes in panels.flat[len(headings) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_yticks(places, names)
        axes.set_ylim(lines - 0.3, -0.7)
    looks = FOREST_LOOKS
    entries: list[tuple[Artist, str]] = [
        (sheet.key(looks["reference"], linestyle="none", markersize=4), NAMES["reference"]),
        (sheet.key(looks["differs"], linestyle="none", markersize=4), NAMES["differs"]),
        (
            sheet.key(looks["open"], linestyle="none", markersize=4, markerfacecolor="white"),
            NAMES["open"],
        ),
        (sheet.ACROSS_KEY, "95 % interval"),
        (sheet.LEVEL_KEY, "mean of the full method"),
    ]
    sheet.legend(drawn, entries)
    return drawn


def _panel(axes: Axes, rows: pd.DataFrame, places: Mapping[str, float], reference: str) -> None:
    for row in rows.to_dict("records"):
        kind = "differs" if row["settled"] else "open"
        look = FOREST_LOOKS["reference" if row["variant"] == reference else kind]
        y = places[row["variant"]]
        if np.isfinite([row["low"], row["high"]]).all():
            axes.hlines(y, row["low"], row["high"], color=look.colour, linewidth=0.9)
        hollow = {"markerfacecolor": "white"} if look is FOREST_LOOKS["open"] else {}
        axes.plot([row["mean"]], [y], **sheet.line(look, linestyle="none", markersize=4, **hollow))
    for mean in rows.loc[rows["variant"] == reference, "mean"]:
        axes.axvline(mean, color=sheet.GREY, linestyle=sheet.LINES["dot"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(axis="y", length=0)


def brief(table: pd.DataFrame, headings: Mapping[str, str], reference: str) -> pd.DataFrame:
    """A row per variant, a column per metric; * where it differs from the full method."""
    rows = table.loc[table["metric"].isin(headings)]
    texts = []
    for row in rows.to_dict("records"):
        star = " *" if row["settled"] and row["variant"] != reference else ""
        values = (row["mean"], row["low"], row["high"])
        texts.append(
            "" if np.isnan(row["mean"]) else "{} [{}, {}]".format(*map(_level, values)) + star
        )
    wide = rows.assign(text=texts).pivot(index="variant", columns="metric", values="text")
    wide = wide.loc[[*dict.fromkeys(rows["variant"])], [m for m in headings if m in wide.columns]]
    return wide.rename(columns=dict(headings)).reset_index().rename_axis(columns=None).fillna("")


def _level(value: float) -> str:
    """Two digits after the point, so that a column can be compared; fewer of what is large."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"
