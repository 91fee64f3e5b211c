"""The figure of sites by prompt against fixed sites."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import by_condition, style
from analyses.prompt_sites.measures import ALL, CHOSEN, FIXED

LOOKS = {
    ALL: style.Look(style.NEUTRAL, "solid", "diamond-open"),
    FIXED: style.Look(style.CLASS_COLOURS["positive"], "solid", "square"),
    CHOSEN: style.Look(style.CLASS_COLOURS["negative"], "solid", "circle"),
}


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Per source the change of the score (left) and the divergence (right), by way of choosing."""
    of_chosen = table.loc[table["condition"] == CHOSEN].set_index("source")
    names = {
        str(name): f"{name}<br>(per prompt − fixed:<br>{row['difference']:+.2f} "
        f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}])"
        for name, row in of_chosen.iterrows()
    }
    sizes = table.drop_duplicates("condition").set_index("condition")["n_sites"]
    return by_condition.figure(
        table,
        LOOKS,
        names=names,
        told={condition: f"{condition} ({sizes[condition]})" for condition in LOOKS},
        title="Sites chosen by prompt, and as many fixed ones",
        subtitle=subtitle,
        row_height=80,
    )
