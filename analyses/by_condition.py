"""The figure of conditions side by side: per source the change of the score, and the divergence."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style

PANELS = (("change", "change of the score (nats)"), ("kl", "KL (nats per token)"))
APART = 0.2
"""Of a row's height, between two conditions of one source."""


def figure(
    table: pd.DataFrame,
    looks: Mapping[str, style.Look],
    *,
    names: Mapping[str, str],
    title: str,
    subtitle: str,
    row_height: int,
    told: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw the change of the score (left) and the divergence (right) of each condition.

    Args:
        table: ``source``, ``condition``, ``opening_mass``, ``change`` and ``kl``, these two with
            their intervals ``_low`` and ``_high``.
        looks: of each condition that is drawn, in the order of the legend.
        names: of each source, beside its row.
        title: of the figure.
        subtitle: what was measured, and on what.
        row_height: pixels of a source.
        told: of each condition in the legend, where that is not its name.
    """
    drawn = make_subplots(
        rows=1,
        cols=len(PANELS),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[heading for _, heading in PANELS],
    )
    crossed = style.Crosses()
    places = {name: place for place, name in enumerate(names)}
    for order, (condition, look) in enumerate(looks.items()):
        rows = table.loc[table["condition"] == condition]
        heights = rows["source"].map(places) + APART * (order - (len(looks) - 1) / 2)
        legend = condition if told is None else told[condition]
        for panel, (column, _) in enumerate(PANELS, start=1):
            whiskers = {
                "array": rows[f"{column}_high"] - rows[column],
                "arrayminus": rows[column] - rows[f"{column}_low"],
            }
            drawn.add_trace(
                go.Scatter(
                    x=rows[column],
                    y=heights,
                    text=rows["source"].map(names),
                    mode="markers",
                    name=legend,
                    legendgroup=legend,
                    showlegend=panel == 1,
                    marker={"color": look.colour, "size": 10, "symbol": look.symbol},
                    error_x={"type": "data", "color": look.colour, **whiskers},
                    hovertemplate=f"%{{text}}, {legend}: %{{x:.3f}}<extra></extra>",
                ),
                row=1,
                col=panel,
            )
        crossed.draw(drawn, rows["change"], heights, rows["opening_mass"])
    style.explain(drawn, style.ACROSS, "95 % interval")
    style.upright(drawn, 0, row=1, col=1)
    drawn.update_yaxes(
        range=[len(names) - 0.5, -0.5],
        tickvals=[*places.values()],
        ticktext=[*names.values()],
        automargin=True,
    )
    return style.layout(drawn, title, subtitle, height=240 + row_height * len(names))
