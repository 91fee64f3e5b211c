"""The figure of the comparison at equal divergence."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style

TICKS = [float(f"{digit}e{power}") for power in range(-5, 3) for digit in (1, 2, 5)]


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Score against divergence, one panel per class, one colour per family.

    The divergence is that over both classes, in either panel, as the budget is. Crosses reach over
    the 95 % intervals. Dotted: unsteered, and the budgets; a marker beside its budget says that
    test prompts differ from those that the strength was chosen on. A hollow marker stands where
    less than half of the first token's probability is on any opening, refusing or complying, so
    that the score says little. A family without a strength is a diamond; one that reaches no budget
    stands in the legend alone.
    """
    labels = tuple(dict.fromkeys(table["prompt_class"]))
    drawn = make_subplots(
        rows=1,
        cols=len(labels),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[f"{label} prompts" for label in labels],
    )
    line = {"color": style.NEUTRAL, "width": 1, "dash": "dot"}
    for panel, (_, of_class) in enumerate(table.groupby("prompt_class", sort=False), start=1):
        by_family = of_class.groupby("family", sort=False)
        for colour, (family, rows) in zip(cycle(style.SERIES_COLOURS), by_family, strict=False):
            drawn.add_trace(_points(str(family), rows, colour, panel == 1), row=1, col=panel)
        unsteered = float(of_class["unsteered"].iloc[0])
        across = {"x0": 0, "x1": 1, "xref": "x domain" if panel == 1 else f"x{panel} domain"}
        drawn.add_shape(
            type="line", y0=unsteered, y1=unsteered, line=line, row=1, col=panel, **across
        )
        for budget in dict.fromkeys(of_class["budget"]):
            upwards = {"y0": 0, "y1": 1, "yref": "y domain" if panel == 1 else f"y{panel} domain"}
            drawn.add_shape(
                type="line", x0=budget, x1=budget, line=line, row=1, col=panel, **upwards
            )
    drawn.update_xaxes(
        title_text="KL from the unsteered model (nats per token)", type="log", tickvals=TICKS
    )
    drawn.update_yaxes(title_text="refusal score (nats)", col=1)
    title = "Refusal score of operators at equal divergence"
    drawn = style.layout(drawn, title, subtitle, height=600)
    return drawn.update_layout(
        legend={"y": -0.18, "yanchor": "top", "x": 0.5, "xanchor": "center"}, margin={"b": 170}
    )


def _points(family: str, rows: pd.DataFrame, colour: str, in_legend: bool) -> go.Scatter:
    """A family's points from the smallest divergence to the largest, with their intervals."""
    reached = rows.dropna(subset=["kl"]).sort_values("kl")
    fixed = bool(reached["strength"].isna().any())
    if fixed:
        reached = reached.head(1)  # the same at every budget
    name = family if len(reached) else f"{family} (not reached)"
    shape = "diamond" if fixed else "circle"
    symbols = [shape if mass >= 0.5 else f"{shape}-open" for mass in reached["opening_mass"]]
    return go.Scatter(
        x=reached["kl"] if len(reached) else [None],
        y=reached["refusal_score"] if len(reached) else [None],
        error_x=_interval(reached, "kl", "kl_low", "kl_high"),
        error_y=_interval(reached, "refusal_score", "low", "high"),
        mode="lines+markers",
        name=name,
        legendgroup=family,
        line={"color": colour, "width": 1.5},
        marker={"symbol": symbols, "size": 8, "color": colour},
        customdata=reached[["operator", "opening_mass", "budget"]],
        hovertemplate="%{customdata[0]}<br>%{y:.2f} nats at KL %{x:.3g}, budget "
        "%{customdata[2]:g}<br>opening mass %{customdata[1]:.2f}",
        showlegend=in_legend,
    )


def _interval(rows: pd.DataFrame, centre: str, low: str, high: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": rows[high] - rows[centre],
        "arrayminus": rows[centre] - rows[low],
        "thickness": 1,
        "width": 3,
    }
