"""Tokens in the plane in print: a row per token, a column per site, a panel per condition."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses import style
from analyses.printed import sheet
from analyses.printed.letters import LACKING_TOLD, drawable, on_shade
from analyses.token_projections.figures import arrow

MOST = 64
"""Tokens that are shown; of a longer text the last."""
LONGEST = {1: 9, 2: 14}
ARROWS_FIT = {1: 7, 2: 22}
"""Sites of a panel up to which a cell is as wide as an arrow and its name."""
CAPTION = (
    "Each token's activation in the plane, at chosen sites, unsteered and steered. Shade: its part "
    "along b1, as a share of its norm. Arrow: its angle in the plane, to 45°. "
    f"Of a longer text the last {MOST} tokens. {LACKING_TOLD}"
)
EDGE = {"color": "black", "linewidth": 1.2}


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A panel per condition, the first token above; a line parts the prompt from the answer.

    Args:
        table: from :func:`analyses.token_projections.measure`, of one prompt.
        columns: of the page, one or two.
    """
    conditions = list(dict.fromkeys(table["condition"]))
    longest = int(table["position"].max()) + 1
    first = max(0, longest - MOST)
    table = table.loc[table["position"] >= first]
    limit = float(table["cos_1"].abs().max()) or 1.0
    shades = LinearSegmentedColormap.from_list("diverging", style.DIVERGING)
    norm = Normalize(-limit, limit)
    drawn = sheet.blank(columns, 1.55 + 0.12 * (longest - first))
    panels = drawn.subplots(1, len(conditions), squeeze=False)[0]
    for place, (axes, condition) in enumerate(zip(panels, conditions, strict=True)):
        rows = table.loc[table["condition"] == condition]
        _cells(axes, rows, shades, norm, ARROWS_FIT[columns])
        tokens = rows.drop_duplicates("position").sort_values("position")
        names = [drawable(str(token), LONGEST[columns]) for token in tokens["token"]]
        axes.set_yticks(tokens["position"].tolist(), names, fontsize=sheet.SMALLEST)
        axes.set_ylim(longest - 0.5, first - 0.5)
        if place:
            axes.yaxis.tick_right()
        edge = first + int(tokens["is_prompt"].sum()) - 0.5
        axes.axhline(edge, **EDGE)
        axes.set_title(condition)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    sheet.colour_bar(drawn, norm, shades, [*panels], "part of the norm along b1")
    sheet.legend(drawn, _entries(table["site"].nunique() <= ARROWS_FIT[columns]))
    return drawn


def _cells(axes: Axes, rows: pd.DataFrame, shades: Colormap, norm: Normalize, most: int) -> None:
    sites = list(dict.fromkeys(rows["site"]))
    parts, angles = (
        rows.pivot(index="position", columns="site", values=column)[sites]
        for column in ("cos_1", "angle_deg")
    )
    start, end = int(parts.index[0]), int(parts.index[-1])
    edges = np.arange(len(sites) + 1) - 0.5, np.arange(start, end + 2) - 0.5
    axes.pcolormesh(
        *edges, parts.to_numpy(float), cmap=shades, norm=norm, edgecolors="white", linewidth=0.5
    )
    every = -(-len(sites) // most)
    shown = range(0, len(sites), every)
    axes.set_xticks([*shown], [sites[i] for i in shown], rotation=90)
    if every > 1:
        return
    for (row, column), angle in np.ndenumerate(angles.to_numpy(float)):
        colour = on_shade(float(norm(parts.iat[row, column])))
        where = column, start + row
        axes.text(
            *where, arrow(angle), ha="center", va="center", fontsize=sheet.SMALLEST, color=colour
        )


def _entries(with_arrows: bool) -> list[tuple[Artist, str]]:
    found: list[tuple[Artist, str]] = [(Line2D([], [], **EDGE), "end of the prompt")]
    if with_arrows:
        look = {"color": "black", "linestyle": "none", "markersize": 6, "markeredgewidth": 0.2}
        for sign, text in ((r"$\rightarrow$", "along b1 (0°)"), (r"$\uparrow$", "along b2 (90°)")):
            found.append((Line2D([], [], marker=sign, **look), text))
    return found


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the tokens of the prompt and of the answer, by condition and site."""
    keys = ["condition", "is_prompt", "site"]
    rows = []
    for _, group in table.groupby(keys, sort=False):
        one, n = group.iloc[0], len(group)
        share = (group["in_plane_norm"] / group["norm"]).mean()
        rows.append(
            {
                "condition": str(one["condition"]),
                "site": str(one["site"]),
                "tokens of the": "prompt" if one["is_prompt"] else "answer",
                "n": str(n),
                "along b1": f"{group['cos_1'].mean():+.3f}",
                "along b2": f"{group['cos_2'].mean():+.3f}",
                "in the plane": f"{share:.3f}",
                "norm": f"{group['norm'].mean():.3g}",
            }
        )
    return pd.DataFrame(rows)
