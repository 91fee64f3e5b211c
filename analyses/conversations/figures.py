"""The figure of long conversations: score and norm, turn by turn."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import style


def figure(summary: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Above the refusal score of the probes, below the norm as a multiple of the unsteered one."""
    drawn, crossed = style.two_panels(), style.Crosses()
    for name, look in style.series(summary["condition"]).items():
        rows = summary.loc[summary["condition"] == name].sort_values("turn")
        for panel, (column, low, high) in enumerate(
            (("refusal_score", "low", "high"), ("norm_ratio", "norm_low", "norm_high")), start=1
        ):
            x, below, above = (rows[key].to_numpy() for key in ("turn", low, high))
            drawn.add_trace(style.band(x, below, above, look.colour, name), row=panel, col=1)
            drawn.add_trace(
                go.Scatter(
                    x=x,
                    y=rows[column],
                    mode="lines+markers",
                    name=f"steering {name}",
                    legendgroup=name,
                    showlegend=panel == 1,
                    line={"color": look.colour, "dash": look.dash, "width": 1.5},
                    marker={"symbol": look.symbol, "size": 7, "color": look.colour},
                    hovertemplate="turn %{x}: %{y:.2f}<extra></extra>",
                ),
                row=panel,
                col=1,
            )
        crossed.draw(drawn, rows["turn"], rows["refusal_score"], rows["opening_mass"])
    style.level(drawn, 0, row=1, col=1)
    style.explain(drawn, style.BAND, "95 % interval over probes")
    drawn.update_yaxes(title_text="refusal score (nats)", row=1, col=1)
    drawn.update_yaxes(title_text="norm /<br>unsteered", row=2, col=1)
    drawn.update_xaxes(title_text="turns of the conversation before the probe", row=2, col=1)
    return style.layout(drawn, "Steering over a conversation", subtitle, height=520)
