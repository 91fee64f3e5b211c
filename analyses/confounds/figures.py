"""The figure of the confound check."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.confounds.conclusions import reached


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Areas with their intervals; orange where the surface reaches the activations (dashed)."""
    suspects = {surface for surface, _ in reached(table)}
    drawn = go.Figure()
    for row in table.to_dict("records"):
        colour = style.NEUTRAL if row["kind"] == "surface" else style.CLASS_COLOURS["negative"]
        if row["reading"] in suspects:
            colour = style.CLASS_COLOURS["positive"]
        area = row["auroc"]
        whiskers = {"array": [row["high"] - area], "arrayminus": [area - row["low"]]}
        drawn.add_trace(
            go.Scatter(
                x=[area],
                y=[row["reading"]],
                mode="markers",
                marker={"color": colour, "size": 11},
                error_x={"type": "data", "color": colour, **whiskers},
                hovertemplate=f"%{{y}}: %{{x:.3f}}<br>{row['sites']}<extra></extra>",
                showlegend=False,
            )
        )
        if row["kind"] == "activations":
            drawn.add_vline(area, line={"color": colour, "width": 1, "dash": "dash"})
    drawn.add_vline(0.5, line=style.DOTTED)
    drawn.update_yaxes(autorange="reversed")
    drawn.update_xaxes(
        title_text="AUROC on unseen prompts (dotted: chance; dashed: the activations)",
        range=[min(0.4, float(table["low"].min()) - 0.02), 1.01],
    )
    return style.layout(drawn, "How well the classes can be told apart", subtitle, height=380)
