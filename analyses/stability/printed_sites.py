"""Stability in print, by site: class means over recalibrations, and how often each is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from analyses import style
from analyses.printed import sheet
from ss_lens.models.sites import Site

CAPTION = (
    "Class means of the unit-normalised activations along b1, and the share of draws that select "
    "each site. Wide bands: 95 % of whole recalibrations on resampled prompts; narrow, darker "
    "ones: over prompts alone, with one direction."
)
CHOSEN, OTHERS = "0.35", "0.8"
AT_SITE: Mapping[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2))}
SHUFFLED: Mapping[str, Any] = {
    **{"linestyle": "none", "marker": "_", "color": "black"},
    **{"markersize": 3.4, "markeredgewidth": 0.9},
}


@sheet.in_print
def figure(sites: pd.DataFrame, columns: int = 2) -> Figure:
    """Means above, shares below, by depth.

    Args:
        sites: the second table of :func:`analyses.stability.measure`.
        columns: of the page, one or two.
    """
    table, null = sites.query("kind == 'bootstrap'"), sites.query("kind == 'shuffled'")
    names = [Site.parse(name) for name in table["site"]]
    x = style.depth(names)
    step = float(x[1] - x[0]) if len(x) > 1 else 0.5
    drawn = sheet.blank(columns, {1: 3.9, 2: 3.5}[columns])
    means, shares = drawn.subplots(2, 1, sharex=True, height_ratios=(1.6, 1))
    small = {"markersize": 2.2 if columns == 1 else 2.6, "linewidth": 0.8}
    entries: list[tuple[Artist, str]] = []
    for label, look in style.CLASS_LOOKS.items():
        for interval, opacity in (("own", sheet.PALE), ("fixed", 2 * sheet.PALE)):
            low, high = (table[f"{label}_{interval}_{end}"] for end in ("low", "high"))
            means.fill_between(x, low, high, color=look.colour, alpha=opacity, linewidth=0)
        sheet.curve(means, x, table[label], look, **small)
        entries.append((sheet.key(look, **small), f"{label} prompts"))
    sheet.level(means, 0)
    chosen = table["selected"].to_numpy(bool)
    for mask, shade in ((chosen, CHOSEN), (~chosen, OTHERS)):
        shares.bar(x[mask], table.loc[mask, "share_selected"], width=0.8 * step, color=shade)
    shuffled = style.depth([Site.parse(name) for name in null["site"]])
    shares.plot(shuffled, null["share_selected"], **SHUFFLED)
    place = x[table["is_direction_site"].to_numpy(bool)][0]
    means.axvline(place, **AT_SITE)
    means.set_ylabel("mean along b1 (cosine)")
    shares.set_ylabel("share of draws\nthat select")
    shares.set_ylim(0, 1.05)
    shares.yaxis.set_major_formatter(PercentFormatter(1))
    shares.set_xlim(x[0] - step, x[-1] + step)
    sheet.label_depth(shares, names)
    named = table.loc[table["is_direction_site"], "site"].iloc[0]
    entries += [
        (sheet.BAND_KEY, "95 % of recalibrations"),
        (Patch(facecolor="black", alpha=2 * sheet.PALE, linewidth=0), "95 % over prompts alone"),
        (Patch(facecolor=CHOSEN), "selected by all prompts"),
        (Patch(facecolor=OTHERS), "not selected by all"),
        (Line2D([], [], **SHUFFLED), "under shuffled labels"),
        (Line2D([], [], **AT_SITE), f"direction site {named}"),
        (sheet.LEVEL_KEY, "0"),
    ]
    sheet.legend(drawn, entries)
    return drawn


def brief(sites: pd.DataFrame) -> pd.DataFrame:
    """Both means with the intervals of whole recalibrations, and the shares, per site."""
    table = sites.query("kind == 'bootstrap'")
    null = sites.query("kind == 'shuffled'").set_index("site")["share_selected"]
    columns: dict[str, object] = {"site": table["site"]}
    for label in style.CLASS_LOOKS:
        rows = table[[label, f"{label}_own_low", f"{label}_own_high"]].itertuples(index=False)
        columns[f"{label} mean"] = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*row) for row in rows]
    columns["selected by all"] = ["yes" if chosen else "" for chosen in table["selected"]]
    columns["in draws"] = [f"{share:.0%}" for share in table["share_selected"]]
    columns["shuffled"] = [f"{null[site]:.0%}" for site in table["site"]]
    columns["direction site"] = [f"{share:.0%}" for share in table["share_direction"]]
    return pd.DataFrame(columns)
