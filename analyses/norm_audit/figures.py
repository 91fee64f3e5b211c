"""The figure of the norm audit."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style
from analyses.norm_audit.conditions import BASES, EXACT

FLOOR = -18
"""Where the figure puts zeros: the power of ten below every change that float64 can show."""
CONDITIONS = (
    ("float64", "float64", "float64", style.SERIES_COLOURS[5], "circle"),
    ("float32", "float32", "float32", style.SERIES_COLOURS[0], "square"),
    ("bfloat16", "float32", "bfloat16, computed in float32", style.SERIES_COLOURS[1], "cross"),
    ("bfloat16", "bfloat16", "all in bfloat16, as published", style.SERIES_COLOURS[4], "diamond"),
)


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Norm changes by operator, one panel per basis; at the right what becomes of the phases.

    A dot is the median, its line reaches to the largest change. Medians of exactly zero stand on
    the line marked 0. Phases are those of the orthonormal basis in float64.
    """
    settings = list(dict.fromkeys(table["setting"]))[::-1]
    drawn = make_subplots(
        rows=1,
        cols=len(BASES) + 1,
        shared_yaxes=True,
        horizontal_spacing=0.015,
        column_widths=[0.27] * len(BASES) + [0.19],
        subplot_titles=[*(f"basis<br>{basis}" for basis in BASES), "phases<br>before | after ●"],
    )
    floor = 10.0**FLOOR
    conditions = table.set_index(["basis", "dtype", "arithmetic"]).sort_index()
    for panel, basis in enumerate(BASES, start=1):
        for shift, (dtype, arithmetic, name, colour, symbol) in zip(
            (0.27, 0.09, -0.09, -0.27), CONDITIONS, strict=True
        ):
            if (basis, dtype, arithmetic) not in conditions.index:
                continue  # an orthonormal basis does not exist in bfloat16
            rows = conditions.loc[[(basis, dtype, arithmetic)]]
            zero = rows["norm_median"].to_numpy() == 0
            x = rows["norm_median"].mask(zero, floor).to_numpy()
            drawn.add_trace(
                go.Scatter(
                    x=x,
                    y=[settings.index(setting) + shift for setting in rows["setting"]],
                    error_x={
                        "array": (rows["norm_max"].to_numpy() - x).clip(min=0),
                        "arrayminus": [0] * len(rows),
                        "symmetric": False,
                        "thickness": 1.5,
                        "width": 3,
                    },
                    mode="markers",
                    marker={"symbol": symbol, "size": 7, "color": colour},
                    name=name,
                    legendgroup=name,
                    showlegend=panel == len(BASES),
                    customdata=rows[["setting", "norm_median", "norm_q95", "norm_max", "n"]],
                    hovertemplate="%{customdata[0]}<br>median %{customdata[1]:.1e}, 95 % "
                    "%{customdata[2]:.1e}, largest %{customdata[3]:.1e}<br>%{customdata[4]} "
                    "activations",
                ),
                row=1,
                col=panel,
            )
        style.upright(drawn, floor, row=1, col=panel, dash="solid")
    style.explain(drawn, style.ACROSS, "from the median to the largest change")
    exponents = range(-12, 1, 6)
    drawn.update_xaxes(
        type="log",
        range=[FLOOR - 0.8, 0.4],
        tickvals=[floor, *(10.0**e for e in exponents)],
        ticktext=["0", *(f"10<sup>{e}</sup>".replace("-", "−") for e in exponents)],
        tickangle=0,
    )
    for panel in range(1, len(BASES) + 1):
        drawn.update_xaxes(title_text="|‖h′‖/‖h‖ − 1|", row=1, col=panel)
    exact = table[(table["basis"] == EXACT) & (table["dtype"] == "float64")]
    for column, symbol, name in (
        ("phase_before", "line-ns", "phases before"),
        ("phase_after", "circle", "phases after"),
    ):
        drawn.add_trace(
            go.Scatter(
                x=exact[column],
                y=[settings.index(setting) for setting in exact["setting"]],
                mode="markers",
                marker={
                    "symbol": symbol,
                    "size": 10,
                    "color": style.NEUTRAL,
                    "line": {"width": 1.5, "color": style.NEUTRAL},
                },
                name=name,
                text=exact["setting"],
                hovertemplate="%{text}: %{x:.3f}",
                showlegend=False,
            ),
            row=1,
            col=len(BASES) + 1,
        )
    drawn.update_xaxes(
        type="linear",
        range=[-0.05, 1.05],
        tickvals=[0, 0.5, 1],
        ticktext=["0", "0.5", "1"],
        title_text="resultant length",
        row=1,
        col=len(BASES) + 1,
    )
    drawn.update_yaxes(
        range=[-0.6, len(settings) - 0.4],
        tickvals=list(range(len(settings))),
        ticktext=[_label(setting) for setting in settings],
        ticks="",
    )
    for edge in range(1, len(settings)):
        line = {"color": "#dddddd", "width": 1}
        drawn.add_hline(edge - 0.5, line=line, layer="below")
    title = "What each operator does to the norm"
    return style.layout(drawn, title, subtitle, height=110 + 62 * len(settings), narrowest=700)


def _label(setting: str) -> str:
    """``RotateBy(angle_deg=120.0)`` on two lines, the strength below."""
    name, _, strength = setting.rstrip(")").partition("(")
    return f"{name}<br><sup>{strength}</sup>" if strength else name
