"""The cosines between candidate directions in print: a map that darkens from −1 to 1."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analyses import style
from analyses.printed import sheet
from analyses.site_tables import SiteMatrix

CAPTION = "Cosine similarity of the candidate directions of every pair of sites."
HATCH = "/////"
CROSSING = {"color": "black", "linewidth": 0.7, "linestyle": (0, (3, 2))}


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A site × site map; hatched where a site has no direction, dashed at the direction site.

    Args:
        table: from :func:`analyses.run_figures.cosine_heatmap.measure`.
        columns: of the page, one or two.
    """
    matrix = SiteMatrix.from_frame(table, "cosine", "cosine")
    names = [str(site) for site in matrix.sites]
    n = len(names)
    drawn = sheet.blank(columns, {1: 3.1, 2: 5.4}[columns])
    axes = drawn.subplots()
    shades = LinearSegmentedColormap.from_list("diverging", style.DIVERGING)
    shown = axes.imshow(
        np.ma.masked_invalid(matrix.values),
        cmap=shades,
        vmin=-1,
        vmax=1,
        interpolation="nearest",
        extent=(-0.5, n - 0.5, n - 0.5, -0.5),
    )
    axes.set_facecolor("white")
    bar = drawn.colorbar(shown, ax=axes, label=matrix.unit, shrink=0.8, aspect=30)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    missing = np.isnan(np.diag(matrix.values))
    for first, last in sheet.spans(pd.Series(missing)):
        ends = first - 0.5, last + 0.5
        for span in (axes.axhspan, axes.axvspan):
            span(*ends, facecolor="white", edgecolor="0.5", hatch=HATCH, linewidth=0)
    entries: list[tuple[Artist, str]] = []
    for chosen in dict.fromkeys(table.loc[table["is_direction_site"], "site"]):
        place = names.index(chosen)
        axes.axhline(place, **CROSSING)
        axes.axvline(place, **CROSSING)
        entries.append((Line2D([], [], **CROSSING), f"direction site {chosen}"))
    if missing.any():
        patch = Patch(facecolor="white", edgecolor="0.5", hatch=HATCH, linewidth=0)
        entries.append((patch, "no direction"))
    ticks = style.layer_ticks(matrix.sites)
    axes.set_xticks([*ticks.values()], [*map(str, ticks)])
    axes.set_yticks([*ticks.values()], [*map(str, ticks)])
    axes.set_xlabel(style.depth_title(matrix.sites))
    axes.set_ylabel("layer")
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    if entries:
        sheet.legend(drawn, entries)
    return drawn


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """Per site the mean cosine to the other sites' candidates, by which the direction is chosen."""
    others = table.loc[table["site"] != table["other_site"]]
    means = others.groupby("site", sort=False)["cosine"].mean()
    marked = {*table.loc[table["is_direction_site"], "site"]}
    return pd.DataFrame(
        {
            "site": list(means.index),
            "mean cosine to the others": ["" if np.isnan(v) else f"{v:+.3f}" for v in means],
            "direction site": ["yes" if site in marked else "" for site in means.index],
        }
    )
