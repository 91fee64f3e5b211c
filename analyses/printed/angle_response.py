"""The angle response in print: score against angle for each way of steering, by class."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analyses import null_bands, style
from analyses.printed import sheet

CAPTION = (
    "Mean refusal score against the angle, with 95 % intervals over prompts; of random planes "
    "2.5 % to 97.5 % of the draws."
)


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A panel per class; in one column below each other.

    Args:
        table: from :func:`analyses.angle_response.measure`.
        columns: of the page, one or two.
    """
    labels = [*dict.fromkeys(table["prompt_class"])]
    across = len(labels) if columns == 2 else 1
    drawn = sheet.blank(columns, 3.0 if columns == 2 else 0.8 + 1.9 * len(labels))
    grid = (1, across) if columns == 2 else (len(labels), 1)
    panels = drawn.subplots(*grid, sharey=True, sharex=True, squeeze=False)
    random = null_bands.null_rows(table)
    looks = style.series(table.loc[~random, "way"])
    kinds = [*table.loc[random].groupby("way", sort=False)]
    hues = dict(zip((str(name) for name, _ in kinds), null_bands.COLOURS, strict=False))
    small = {"markersize": 2.6, "linewidth": 0.9}
    crossed = False
    for axes, label in zip(panels.flat, labels, strict=True):
        of_class = table.loc[table["prompt_class"] == label].sort_values("angle_deg", kind="stable")
        for way, rows in of_class.loc[random.loc[of_class.index]].groupby("way", sort=False):
            ends = rows["low"], rows["high"]
            colour = hues[str(way)]
            axes.fill_between(rows["angle_deg"], *ends, color=colour, alpha=0.3, linewidth=0)
        of_class = of_class.loc[~random.loc[of_class.index]]
        for way, rows in of_class.groupby("way", sort=False):
            look, x = looks[str(way)], rows["angle_deg"]
            axes.fill_between(
                x, rows["low"], rows["high"], color=look.colour, alpha=0.18, linewidth=0
            )
            sheet.curve(axes, x, rows["refusal_score"], look, **small)
            crossed |= sheet.crosses(axes, x, rows["refusal_score"], rows["opening_mass"])
        sheet.level(axes, float(of_class["unsteered"].iloc[0]))
        axes.set_title(f"{label} prompts")
        axes.set_xticks(range(0, 361, 90))
        axes.set_ylabel("refusal score (nats)" if axes in panels[:, 0] else "")
    for axes in panels[-1]:
        axes.set_xlabel("θ (degrees)")
    entries: list[tuple[Artist, str]] = [
        *((sheet.key(look, **small), way) for way, look in looks.items()),
        (sheet.BAND_KEY, "95 % interval"),
        (sheet.LEVEL_KEY, "unsteered"),
        *(
            (
                Patch(facecolor=hues[str(name)], alpha=0.3, linewidth=0),
                null_bands.told(str(name), int(rows["draws"].iloc[0])),
            )
            for name, rows in kinds
        ),
    ]
    if crossed:
        entries.append((sheet.CROSS_KEY, sheet.CROSS_TEXT))
    sheet.legend(drawn, entries)
    return drawn


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The score with its interval at each angle, a column per way and class."""
    texts = [
        "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row)
        for row in table[["refusal_score", "low", "high"]].itertuples(index=False)
    ]
    named = table.assign(column=table["way"] + ", " + table["prompt_class"], text=texts)
    wide = named.pivot(index="angle_deg", columns="column", values="text").sort_index()
    order = list(dict.fromkeys(named["column"]))
    wide.index = [f"{angle:g}" for angle in wide.index]
    return wide[order].fillna("").rename_axis("θ (°)").reset_index().rename_axis(columns=None)
