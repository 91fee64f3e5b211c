"""The dial in print: refusal score and opening mass against the angle, with the controls."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import null_bands
from analyses.dial_looks import BESIDE, LONE, closed, looks, named, panels_of
from analyses.printed import sheet
from analyses.style import LOW_MASS
from ss_lens.experiments.dial.ways import METHOD, RANDOM

CAPTION = (
    "Mean refusal score and opening mass against the angle. The circle closes: 360° repeats 0°. "
    "Random planes stand a little beside their angle."
)
MOST_ACROSS = 9
"""Angles that stand side by side in a table; more stand below each other."""


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """Score above, opening mass below; bars span most of the random draws.

    Args:
        table: from :func:`analyses.run_figures.dial.measure`.
        columns: of the page, one or two.
    """
    drawn = sheet.blank(columns, {1: 4.3, 2: 4.0}[columns])
    panels, columns_drawn = (
        drawn.subplots(2, 1, sharex=True, height_ratios=(1.7, 1)),
        panels_of(table),
    )
    entries: list[tuple[Artist, str]] = []
    crossed = False
    for (way, label), name in named(table).items():
        rows = closed(table, way, label)
        if rows.empty:
            continue
        look = looks()[way, label]
        width = {"linewidth": 1.8} if way == METHOD and label == "positive" else {}
        if way in LONE:
            width = {"linestyle": "none", "markersize": 4.5}
        x = rows["angle_deg"] + BESIDE.get(way, 0)
        for axes, (column, _) in zip(panels, columns_drawn, strict=True):
            if way in RANDOM:
                ends = (rows[f"{column}_low"], rows[f"{column}_high"])
                sheet.bars(axes, x, *ends, look.colour)
            sheet.curve(axes, x, rows[column], look, **width)
        score = columns_drawn[0][0]
        crossed |= sheet.crosses(panels[0], x, rows[score], rows["opening_mass"])
        entries.append((sheet.key(look, **width), name))
    random = table.loc[table["way"].isin(RANDOM), "draws"]
    if not random.empty:
        told = null_bands.told("random planes of each kind", int(random.max()))
        entries.append((sheet.BAR_KEY, told))
    if crossed:
        entries.append((sheet.CROSS_KEY, sheet.CROSS_TEXT))
    entries.append((sheet.LEVEL_KEY, f"0 nats; a mass of {LOW_MASS:g}"))
    _axes(tuple(panels), [title for _, title in columns_drawn])
    sheet.legend(drawn, entries)
    return drawn


def _axes(panels: tuple[Axes, Axes], titles: Sequence[str]) -> None:
    score, mass = panels
    sheet.level(score, 0)
    sheet.level(mass, LOW_MASS)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_ylabel(title)
    mass.set_ylim(-0.04, 1.04)
    mass.set_xlim(-8, 368)
    mass.set_xticks(range(0, 361, 45))
    mass.set_xlabel("θ (degrees)")


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The score of each way at each angle; random draws as their mean and 2.5–97.5 % of them."""
    rows, score, names = [], panels_of(table)[0][0], named(table)
    for (way, label), name in names.items():
        for row in closed(table, way, label).to_dict("records"):
            text = f"{row[score]:+.2f}"
            if way in RANDOM:
                ends = (row[f"{score}_low"], row[f"{score}_high"])
                text += " [{:+.2f}, {:+.2f}]".format(*ends)
            rows.append({"way": name, "angle": row["angle_deg"], "text": text})
    made = pd.DataFrame(rows, columns=["way", "angle", "text"]).query("angle < 360")
    wide = made.pivot(index="way", columns="angle", values="text").fillna("")
    wide = wide.loc[[name for name in names.values() if name in wide.index]]
    wide.columns = [f"{angle:g}°" for angle in wide.columns]
    if len(wide.columns) > MOST_ACROSS:
        return wide.T.rename_axis("θ").reset_index().rename_axis(columns=None)
    return wide.reset_index().rename_axis(columns=None)
