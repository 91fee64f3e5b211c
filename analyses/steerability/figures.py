"""The figure of steerability: every prompt, the mean of each group, and the wrong way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.grouped import groups
from analyses.steerability.measures import summarise

RIGHT = style.Look(style.CLASS_COLOURS["negative"], "solid", "circle")
WRONG = style.Look(style.CLASS_COLOURS["positive"], "solid", "x")
SPREAD = 0.28
"""Half the height that the prompts of a group take of its row."""


def figure(
    slopes: pd.DataFrame,
    subtitle: str = "",
    *,
    by: Sequence[str] = (),
    unit: str = "nats",
    seed: int = 0,
) -> go.Figure:
    """A mark per prompt and a row per group: its change over the scan, toward the goal.

    Args:
        slopes: from :func:`analyses.steerability.measure`.
        subtitle: what was measured, on what.
        by: columns that tell the groups apart.
        unit: of the score.
        seed: of the intervals of the means.
    """
    drawn, shown = go.Figure(), set()
    summary = summarise(slopes, by=by, seed=seed)
    ticks = []
    for place, ((name, rows), total) in enumerate(
        zip(groups(slopes, by), summary.to_dict("records"), strict=True)
    ):
        label = ", ".join(map(str, name)) or "all prompts"
        ticks.append(f"{label}<br>{total['wrong_way']:.0%} the wrong way")
        # Evenly spread by rank, so that no two marks of a group cover each other by accident.
        height = place + SPREAD * np.linspace(-1, 1, len(rows))
        ordered = rows.sort_values("toward")
        for look, wrong, told in (
            (RIGHT, False, "toward the goal"),
            (WRONG, True, "the wrong way"),
        ):
            here = (ordered["wrong_way"] == wrong).to_numpy()
            if not here.any():
                continue
            drawn.add_trace(
                go.Scatter(
                    x=ordered["toward"][here],
                    y=height[here],
                    mode="markers",
                    name=told,
                    legendgroup=told,
                    showlegend=told not in shown,
                    marker={"color": look.colour, "symbol": look.symbol, "size": 6},
                    customdata=ordered["linearity"][here],
                    hovertemplate=f"%{{x:+.2f}} {unit}, R² %{{customdata:.2f}}<extra></extra>",
                )
            )
            shown.add(told)
        drawn.add_trace(
            go.Scatter(
                x=[total["toward"]],
                y=[place],
                mode="markers",
                name="mean, 95 % interval",
                legendgroup="mean",
                showlegend=place == 0,
                marker={"color": "black", "symbol": "diamond", "size": 11},
                error_x={
                    "type": "data",
                    "color": "black",
                    "array": [total["high"] - total["toward"]],
                    "arrayminus": [total["toward"] - total["low"]],
                },
                hovertemplate=f"mean %{{x:+.2f}} {unit}<extra></extra>",
            )
        )
    drawn.add_vline(0, line=style.DOTTED)
    drawn.update_xaxes(title_text=f"change over the scan, toward the goal ({unit})")
    drawn.update_yaxes(
        tickvals=[*range(len(ticks))], ticktext=ticks, autorange="reversed", automargin=True
    )
    height = 220 + 80 * len(ticks)
    return style.layout(drawn, "Steerability, prompt by prompt", subtitle, height=height)
