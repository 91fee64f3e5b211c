"""The figure of gated against ungated steering."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style
from analyses.gating.measures import GATED, UNGATED

LOOKS = {
    UNGATED: style.Look(style.CLASS_COLOURS["positive"], "solid", "square"),
    GATED: style.Look(style.CLASS_COLOURS["negative"], "solid", "circle"),
}
PANELS = (("change", "change of the score (nats)"), ("kl", "KL (nats per token)"))


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Per source the change of the score (left) and the divergence (right), with and without."""
    drawn = make_subplots(
        rows=1,
        cols=len(PANELS),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[title for _, title in PANELS],
    )
    opened = table.loc[table["condition"] == GATED].set_index("source")["steered"]
    names = {name: f"{name}<br>(open: {share:.0%})" for name, share in opened.items()}
    crossed = style.Crosses()
    for condition, look in LOOKS.items():
        rows = table.loc[table["condition"] == condition]
        places = rows["source"].map(names)
        for panel, (column, _) in enumerate(PANELS, start=1):
            whiskers = {
                "array": rows[f"{column}_high"] - rows[column],
                "arrayminus": rows[column] - rows[f"{column}_low"],
            }
            drawn.add_trace(
                go.Scatter(
                    x=rows[column],
                    y=places,
                    mode="markers",
                    name=condition,
                    legendgroup=condition,
                    showlegend=panel == 1,
                    marker={"color": look.colour, "size": 10, "symbol": look.symbol},
                    error_x={"type": "data", "color": look.colour, **whiskers},
                    hovertemplate=f"%{{y}}, {condition}: %{{x:.3f}}<extra></extra>",
                ),
                row=1,
                col=panel,
            )
        crossed.draw(drawn, rows["change"], places, rows["opening_mass"])
    style.explain(drawn, style.ACROSS, "95 % interval")
    style.upright(drawn, 0, row=1, col=1)
    drawn.update_yaxes(autorange="reversed", automargin=True)
    return style.layout(
        drawn, "Steering with and without a gate", subtitle, height=240 + 60 * len(names)
    )
