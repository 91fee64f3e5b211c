"""The figure of sites by prompt against fixed sites."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style
from analyses.prompt_sites.measures import ALL, CHOSEN, FIXED

LOOKS = {
    ALL: style.Look(style.NEUTRAL, "solid", "diamond-open"),
    FIXED: style.Look(style.CLASS_COLOURS["positive"], "solid", "square"),
    CHOSEN: style.Look(style.CLASS_COLOURS["negative"], "solid", "circle"),
}
PANELS = (("change", "change of the score (nats)"), ("kl", "KL (nats per token)"))


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Per source the change of the score (left) and the divergence (right), by way of choosing."""
    drawn = make_subplots(
        rows=1,
        cols=len(PANELS),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[title for _, title in PANELS],
    )
    of_chosen = table.loc[table["condition"] == CHOSEN].set_index("source")
    names = {
        name: f"{name}<br>(per prompt − fixed:<br>{row['difference']:+.2f} "
        f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}])"
        for name, row in of_chosen.iterrows()
    }
    crossed = style.Crosses()
    for condition, look in LOOKS.items():
        rows = table.loc[table["condition"] == condition]
        places = rows["source"].map(names)
        told = f"{condition} ({rows['n_sites'].iloc[0]})"
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
                    name=told,
                    legendgroup=told,
                    showlegend=panel == 1,
                    marker={"color": look.colour, "size": 10, "symbol": look.symbol},
                    error_x={"type": "data", "color": look.colour, **whiskers},
                    hovertemplate=f"%{{y}}, {told}: %{{x:.3f}}<extra></extra>",
                ),
                row=1,
                col=panel,
            )
        crossed.draw(drawn, rows["change"], places, rows["opening_mass"])
    style.explain(drawn, style.ACROSS, "95 % interval")
    style.upright(drawn, 0, row=1, col=1)
    drawn.update_yaxes(autorange="reversed", automargin=True)
    title = "Sites chosen by prompt, and as many fixed ones"
    return style.layout(drawn, title, subtitle, height=240 + 80 * len(names))
