"""Stability in print, of the plane: its angles to that of all prompts, by kind of draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analyses.printed import sheet
from analyses.stability.figures import ANGLES, groups_of

CAPTION = (
    "Principal angles to the plane of all prompts, and the number of selected sites, by kind of "
    "draw. Boxes hold the middle half of the draws, whiskers the middle 95 %, lines the median."
)
FILLS = {"angle_1_deg": "white", "angle_2_deg": "0.6", "n_selected": "0.85"}
QUANTILES = (0.025, 0.25, 0.5, 0.75, 0.975)


@sheet.in_print
def figure(draws: pd.DataFrame, columns: int = 2) -> Figure:
    """Angles above, numbers of sites below; a place on the axis for each kind of draw.

    Args:
        draws: the first table of :func:`analyses.stability.measure`.
        columns: of the page, one or two.
    """
    groups = groups_of(draws, "\n")
    drawn = sheet.blank(columns, {1: 3.8, 2: 3.4}[columns])
    angles, numbers = drawn.subplots(2, 1, sharex=True, height_ratios=(1.6, 1))
    for shift, column in ((-0.2, "angle_1_deg"), (0.2, "angle_2_deg")):
        _boxes(angles, groups, column, shift, 0.32)
    _boxes(numbers, groups, "n_selected", 0.0, 0.4)
    full = int(draws.loc[draws["kind"] == "full", "n_selected"].iloc[0])
    sheet.level(numbers, full)
    angles.set_ylim(-2, 92)
    angles.set_yticks(range(0, 91, 30), [f"{angle}°" for angle in range(0, 91, 30)])
    angles.set_ylabel("angle to the plane\nof all prompts")
    numbers.set_ylabel("selected sites")
    numbers.set_ylim(bottom=0)
    numbers.set_xlim(-0.6, len(groups) - 0.4)
    turned: dict[str, Any] = {"rotation": 90} if columns == 1 and len(groups) > 6 else {}
    numbers.set_xticks(range(len(groups)), [*groups], **turned)
    numbers.tick_params(axis="x", length=0)
    entries: list[tuple[Artist, str]] = [
        *((_patch(column), f"{name} principal angle") for column, (name, _) in ANGLES.items()),
        (_patch("n_selected"), "selected sites"),
        (sheet.LEVEL_KEY, f"selected by all prompts: {full}"),
    ]
    sheet.legend(drawn, entries)
    return drawn


def _boxes(
    axes: Axes, groups: dict[str, pd.DataFrame], column: str, shift: float, width: float
) -> None:
    stats = []
    for rows in groups.values():
        low, q1, median, q3, high = np.quantile(rows[column], QUANTILES)
        stats.append({"whislo": low, "q1": q1, "med": median, "q3": q3, "whishi": high})
    axes.bxp(
        stats,
        positions=np.arange(len(stats)) + shift,
        widths=width,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": FILLS[column], "linewidth": 0.6},
        medianprops={"color": "black", "linewidth": 1.2},
        whiskerprops={"linewidth": 0.6},
        capprops={"linewidth": 0.6},
    )


def _patch(column: str) -> Patch:
    return Patch(facecolor=FILLS[column], edgecolor="black", linewidth=0.6)


def brief(draws: pd.DataFrame) -> pd.DataFrame:
    """Medians of each kind of draw, with the middle 95 %."""
    columns = {
        "angle_1_deg": ("smaller angle (°)", ".1f"),
        "angle_2_deg": ("larger angle (°)", ".1f"),
        "b1_angle_deg": ("of b1 (°)", ".1f"),
        "n_selected": ("selected sites", ".0f"),
    }
    rows = []
    for name, group in groups_of(draws, " ").items():
        cells: dict[str, object] = {"draws of": name, "draws": len(group)}
        for column, (heading, form) in columns.items():
            low, median, high = np.quantile(group[column], (0.025, 0.5, 0.975))
            cells[heading] = f"{median:{form}} [{low:{form}}, {high:{form}}]"
        rows.append(cells)
    return pd.DataFrame(rows)
