"""What random controls do at each angle, as a band: from 2.5 % to 97.5 % of their draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import style
from ss_lens.stats.bootstrap import percentile_interval

COLUMNS = ("refusal_score", "opening_mass")
SHARE = "2.5–97.5 %"
COLOURS = (style.NEUTRAL, style.CLASS_COLOURS["negative"], style.SERIES_COLOURS[1])
"""Of the kinds of draws, in their order."""


def bands(draws: pd.DataFrame, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """The band of each kind at each angle.

    Args:
        draws: a row per ``null`` (the kind), draw and ``angle_deg``.
        columns: what to make a band of.

    Returns:
        ``null``, ``angle_deg``, ``draws``, and for each column its mean, ``_low`` and ``_high``.
    """
    rows = []
    for _, group in draws.groupby(["null", "angle_deg"], sort=False):
        first = group.iloc[0]
        row: dict[str, object] = {"null": first["null"], "angle_deg": float(first["angle_deg"])}
        row["draws"] = len(group)
        for name in columns:
            values = group[name].to_numpy(dtype=float)
            low, high = percentile_interval(values[np.isfinite(values)])
            row |= {
                name: np.nanmean(values),
                f"{name}_low": float(low),
                f"{name}_high": float(high),
            }
        rows.append(row)
    ends = [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["null", "angle_deg", "draws", *ends])


def draws_of_paper(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The random draws of a paper run, each with its angle.

    Runs of earlier versions measured them at the method's angle alone, which stands in the ranks.
    """
    draws = tables["nulls"]
    if "angle_deg" not in draws:
        at = tables["null_ranks"].set_index("null")["angle_deg"]
        draws = draws.assign(angle_deg=draws["null"].map(at))
    return draws.astype({"angle_deg": float})


def null_rows(table: pd.DataFrame) -> pd.Series:
    """Which rows are of several draws."""
    return table["draws"] > 1 if "draws" in table else pd.Series(False, index=table.index)


def told(null: str, draws: int) -> str:
    """What the legend says of a band."""
    return f"{null}: {SHARE} of {draws} draws"


def around(found: pd.DataFrame, angle: float = 10.0) -> pd.DataFrame:
    """The corners of one kind's band, in the order of angles.

    A kind that is known at one angle is a short band there; at several, the band goes straight from
    one to the next.
    """
    found = found.sort_values("angle_deg")
    if len(found) > 1:
        return found
    ends = [found.assign(angle_deg=found["angle_deg"] + side * angle / 2) for side in (-1, 1)]
    return pd.concat(ends)


def draw(
    figure: go.Figure,
    found: pd.DataFrame,
    column: str = "refusal_score",
    *,
    row: int,
    col: int,
    in_legend: bool = True,
) -> None:
    """Put the bands into one panel, below the curves that are drawn after them."""
    for place, (null, rows) in enumerate(found.groupby("null", sort=False)):
        corners = around(rows)
        made = style.band(
            corners["angle_deg"].to_numpy(),
            corners[f"{column}_low"].to_numpy(),
            corners[f"{column}_high"].to_numpy(),
            COLOURS[place % len(COLOURS)],
            told(str(null), int(rows["draws"].iloc[0])),
        )
        figure.add_trace(_named(made, in_legend), row=row, col=col)


def draw_polar(figure: go.Figure, found: pd.DataFrame, column: str, *, row: int, col: int) -> None:
    """The same around a circle."""
    for place, (null, rows) in enumerate(found.groupby("null", sort=False)):
        corners = around(rows)
        theta = corners["angle_deg"].to_numpy()
        low, high = (corners[f"{column}{end}"].to_numpy() for end in ("_low", "_high"))
        name = told(str(null), int(rows["draws"].iloc[0]))
        made = style.band(theta, low, high, COLOURS[place % len(COLOURS)], name)
        turned = go.Scatterpolar(
            theta=made.x,
            r=made.y,
            mode="lines",
            fill="toself",
            fillcolor=made.fillcolor,
            line={"width": 0},
            hoverinfo="skip",
            name=name,
        )
        figure.add_trace(_named(turned, True), row=row, col=col)


def _named(made: go.Scatter | go.Scatterpolar, in_legend: bool) -> go.Scatter | go.Scatterpolar:
    """With a line in the legend, after those of the curves."""
    return made.update(
        showlegend=in_legend, legendgroup=made.name, legendrank=style.LAST, meta=style.EXPLAINS
    )
