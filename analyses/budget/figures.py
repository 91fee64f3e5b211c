"""The figure of the comparison at equal divergence."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import style

TICKS = [float(f"{digit}e{power}") for power in range(-5, 3) for digit in (1, 2, 5)]


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Score against divergence, one panel per class, one colour per family.

    The divergence is that over both classes, in either panel, as the budget is. Crosses reach over
    the 95 % intervals. Dotted: unsteered, and the budgets; a marker beside its budget says that
    test prompts differ from those that the strength was chosen on. A score is crossed out where
    less than half of the first token's probability is on any opening, refusing or complying, so
    that it says little. A family without a strength is a single marker; one that reaches no budget
    stands in the legend alone.
    """
    drawn, panels = style.panel_per_class(table)
    looks, crossed = style.series(table["family"]), style.Crosses()
    for panel, of_class in panels:
        for family, rows in of_class.groupby("family", sort=False):
            points, in_legend = reached(rows), panel == 1
            trace = _points(str(family), points, looks[str(family)], in_legend=in_legend)
            drawn.add_trace(trace, row=1, col=panel)
            crossed.draw(
                drawn, points["kl"], points["refusal_score"], points["opening_mass"], col=panel
            )
        unsteered = float(of_class["unsteered"].iloc[0])
        style.level(drawn, unsteered, row=1, col=panel)
        for budget in dict.fromkeys(of_class["budget"]):
            style.upright(drawn, budget, row=1, col=panel)
    style.explain(drawn, style.BAR, "95 % intervals")
    style.explain_level(drawn, "unsteered; budgets")
    drawn.update_xaxes(title_text="KL from unsteered (nats per token)", type="log", tickvals=TICKS)
    drawn.update_yaxes(title_text="refusal score (nats)", col=1)
    title = "Refusal score of operators at equal divergence"
    return style.layout(drawn, title, subtitle, height=500, narrowest=720)


def reached(rows: pd.DataFrame) -> pd.DataFrame:
    """A family's points from the smallest divergence to the largest.

    Without a strength it is the same at every budget.
    """
    known = rows.dropna(subset=["kl"]).sort_values("kl")
    return known.head(1) if known["strength"].isna().any() else known


def _points(family: str, found: pd.DataFrame, look: style.Look, *, in_legend: bool) -> go.Scatter:
    name = family if len(found) else f"{family} (not reached)"
    return go.Scatter(
        x=found["kl"] if len(found) else [None],
        y=found["refusal_score"] if len(found) else [None],
        error_x=_interval(found, "kl", "kl_low", "kl_high"),
        error_y=_interval(found, "refusal_score", "low", "high"),
        mode="lines+markers",
        name=name,
        legendgroup=family,
        line={"color": look.colour, "width": 1.5, "dash": look.dash},
        marker={"symbol": look.symbol, "size": 8, "color": look.colour},
        customdata=found[["operator", "opening_mass", "budget"]],
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
