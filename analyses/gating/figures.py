"""The figure of gated against ungated steering."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import by_condition, style
from analyses.gating.measures import GATED, UNGATED

LOOKS = {
    UNGATED: style.Look(style.CLASS_COLOURS["positive"], "solid", "square"),
    GATED: style.Look(style.CLASS_COLOURS["negative"], "solid", "circle"),
}


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Per source the change of the score (left) and the divergence (right), with and without."""
    opened = table.loc[table["condition"] == GATED].set_index("source")["steered"]
    names = {str(name): f"{name}<br>(open: {share:.0%})" for name, share in opened.items()}
    return by_condition.figure(
        table,
        LOOKS,
        names=names,
        title="Steering with and without a gate",
        subtitle=subtitle,
        row_height=60,
    )
