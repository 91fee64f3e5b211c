"""The figure of the confound check."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.confounds.conclusions import reached

KINDS = {
    "surface": ("of the prompts' surface", style.NEUTRAL, "circle"),
    "suspect": (
        "of the surface, as far as the activations",
        style.CLASS_COLOURS["positive"],
        "diamond",
    ),
    "activations": ("of the activations", style.CLASS_COLOURS["negative"], "square"),
}
"""Name, colour and symbol of what the classes are told apart by."""


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Areas with their intervals; a diamond where the surface reaches the activations (dashed)."""
    suspects = {surface for surface, _ in reached(table)}
    drawn = go.Figure()
    shown = set()
    for row in table.to_dict("records"):
        kind = "suspect" if row["reading"] in suspects else str(row["kind"])
        name, colour, symbol = KINDS[kind]
        area = row["auroc"]
        whiskers = {"array": [row["high"] - area], "arrayminus": [area - row["low"]]}
        drawn.add_trace(
            go.Scatter(
                x=[area],
                y=[row["reading"]],
                mode="markers",
                name=name,
                legendgroup=kind,
                marker={"color": colour, "size": 11, "symbol": symbol},
                error_x={"type": "data", "color": colour, **whiskers},
                hovertemplate=f"%{{y}}: %{{x:.3f}}<br>{row['sites']}<extra></extra>",
                showlegend=kind not in shown,
            )
        )
        shown.add(kind)
        if row["kind"] == "activations":
            drawn.add_vline(area, line={"color": colour, "width": 1, "dash": "dash"})
    drawn.add_vline(0.5, line=style.DOTTED)
    style.explain(drawn, style.ACROSS, "95 % interval")
    style.explain_level(drawn, "dotted: chance; dashed: the activations")
    # Or the order would be that of the traces, each of which holds some of the readings.
    drawn.update_yaxes(autorange="reversed", categoryarray=[*table["reading"]], automargin=True)
    drawn.update_xaxes(
        title_text="AUROC on unseen prompts",
        range=[min(0.4, float(table["low"].min()) - 0.02), 1.01],
    )
    return style.layout(drawn, "How well the classes can be told apart", subtitle, height=380)
