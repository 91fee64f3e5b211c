"""The confound check in print: how well the classes are told apart, by text and by activations."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses import style
from analyses.confounds.conclusions import reached
from analyses.confounds.figures import KINDS
from analyses.printed import sheet

CAPTION = (
    "Area under the ROC curve on unseen prompts, with 95 % intervals over prompts, by what the "
    "classes are told apart by."
)
NAME_WIDTH = {1: 16, 2: 40}
AT_ACTIVATIONS: Mapping[str, Any] = {"color": "black", "linewidth": 0.7, "linestyle": (0, (4, 2))}


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A line per reading; a diamond where the surface reaches the activations, dashed.

    Args:
        table: from :func:`analyses.confounds.measure`.
        columns: of the page, one or two.
    """
    suspects = {surface for surface, _ in reached(table)}
    names = [textwrap.fill(name, NAME_WIDTH[columns]) for name in table["reading"]]
    drawn = sheet.blank(columns, 1.0 + (0.2 if columns == 2 else 0.3) * len(names))
    axes = drawn.subplots()
    shown: dict[str, style.Look] = {}
    for y, row in enumerate(table.to_dict("records")):
        kind = "suspect" if row["reading"] in suspects else str(row["kind"])
        _, colour, symbol = KINDS[kind]
        look = shown.setdefault(kind, style.Look(colour, "solid", symbol))
        axes.hlines(y, row["low"], row["high"], color=look.colour, linewidth=0.9)
        axes.plot([row["auroc"]], [y], **sheet.line(look, linestyle="none", markersize=4))
        if row["kind"] == "activations":
            axes.axvline(row["auroc"], **AT_ACTIVATIONS, zorder=0.4)
    axes.axvline(0.5, color=sheet.GREY, linestyle=sheet.LINES["dot"], linewidth=0.8, zorder=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(min(0.4, float(table["low"].min()) - 0.02), 1.01)
    axes.set_xlabel("AUROC on unseen prompts")
    entries: list[tuple[Artist, str]] = [
        (sheet.key(shown[kind], linestyle="none", markersize=4), name)
        for kind, (name, *_) in KINDS.items()
        if kind in shown
    ]
    entries.append((sheet.ACROSS_KEY, "95 % interval"))
    if "activations" in shown:
        entries.append((Line2D([], [], **AT_ACTIVATIONS), "the activations"))
    entries.append((sheet.LEVEL_KEY, "chance"))
    sheet.legend(drawn, entries)
    return drawn


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The area of each reading with its interval, and the sites that the folds chose."""
    values = table[["auroc", "low", "high"]].itertuples(index=False)
    return pd.DataFrame(
        {
            "told apart by": table["reading"],
            "AUROC [95 %]": ["{:.3f} [{:.3f}, {:.3f}]".format(*row) for row in values],
            "sites (folds)": table["sites"].fillna(""),
        }
    )
