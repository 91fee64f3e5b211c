"""The effects of single sites in print: each alone above, what it adds to the others below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses import style
from analyses.printed import sheet
from analyses.site_effects.conditions import ALL, LEFT_OUT, ONLY, RANDOM
from analyses.site_effects.figures import places, signed
from ss_lens.models.sites import Site

CAPTION = (
    "Change of the refusal score by each steered site, with 95 % intervals over prompts: steered "
    "alone, and left out while the others are steered."
)
HEADINGS = {ONLY: "this site alone (nats)", LEFT_OUT: "added to the others (nats)"}
CONTROL: Mapping[str, Any] = {
    **{"linestyle": "none", "marker": "_", "color": "0.45"},
    **{"markersize": 5, "markeredgewidth": 0.9},
}


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """Two panels by depth; a marker is open where its interval holds zero.

    Args:
        table: from :func:`analyses.site_effects.measure`.
        columns: of the page, one or two.
    """
    drawn = sheet.blank(columns, {1: 4.0, 2: 3.6}[columns])
    panels = drawn.subplots(2, 1, sharex=True)
    control = table.query("kind == @RANDOM")
    entries: list[tuple[Artist, str]] = []
    crossed = False
    for label, of_class in table.groupby("prompt_class", sort=False):
        look = style.CLASS_LOOKS[str(label)]
        lone = {"linestyle": "none", "markersize": 2.6 if columns == 1 else 3.4}
        whole = signed(of_class.loc[of_class["kind"] == ALL, "effect"].iloc[0])
        entries.append((sheet.key(look, **lone), f"{label} prompts (all sites: {whole} nats)"))
        for axes, kind in zip(panels, (ONLY, LEFT_OUT), strict=True):
            rows = of_class.loc[of_class["kind"] == kind]
            x, y = places(rows), rows["effect"]
            sheet.bars(axes, x, rows["low"], rows["high"], look.colour)
            open_ = (rows["low"] <= 0) & (rows["high"] >= 0)
            sheet.curve(axes, x, y, look, open_=open_, **lone)
            crossed |= sheet.crosses(axes, x, y, rows["opening_mass"])
    if len(control):
        panels[0].plot(places(control), control["effect"], **CONTROL, zorder=1)
        entries.append((Line2D([], [], **CONTROL), "this site in random planes"))
    for axes, kind in zip(panels, (ONLY, LEFT_OUT), strict=True):
        shown = table["kind"].isin([kind, RANDOM] if kind == ONLY else [kind])
        limit = 1.08 * float(np.nanmax(np.abs(table.loc[shown, ["effect", "low", "high"]]))) or 1.0
        axes.set_ylim(-limit, limit)
        axes.locator_params(axis="y", nbins=5)
        axes.set_ylabel(HEADINGS[kind])
        sheet.level(axes, 0)
    sites = [Site.parse(site) for site in dict.fromkeys(table.loc[table["site"] != "", "site"])]
    sheet.label_depth(panels[1], sorted(sites))
    x = style.depth(sites)
    panels[1].set_xlim(x.min() - 0.75, x.max() + 0.75)
    entries += [
        (sheet.BAR_KEY, "95 % interval over prompts"),
        (sheet.OPEN_KEY, "the interval holds 0"),
        (sheet.LEVEL_KEY, "no change"),
    ]
    if crossed:
        entries.append((sheet.CROSS_KEY, sheet.CROSS_TEXT))
    sheet.legend(drawn, entries)
    return drawn


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """A row per site and both effects per class; the first row has all sites together."""
    rows = []
    for site in dict.fromkeys(table.loc[table["kind"].isin((ALL, ONLY)), "site"]):
        cells: dict[str, object] = {"site": site or ALL}
        for kind, heading in ((ALL if site == "" else ONLY, "alone"), (LEFT_OUT, "left out")):
            here = table.loc[(table["site"] == site) & (table["kind"] == kind)]
            for label in style.CLASS_LOOKS:
                of_class = here.loc[here["prompt_class"] == label, ["effect", "low", "high"]]
                texts = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*row) for row in of_class.to_numpy()]
                cells[f"{heading}, {label}"] = texts[0] if texts else ""
        rows.append(cells)
    return pd.DataFrame(rows)
