"""How do refusal and text answer to the angle, by the method and by its controls?"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.run_parts import RunParts
from ss_lens.experiments.dial.scan import (
    ALL_SITES,
    HEADINGS,
    MATCHED,
    METHOD,
    RANDOM,
    SAME,
    UNIFORM,
)

COLUMNS = (("refusal_score", "refusal score (nats)"), ("opening_mass", "opening mass"))
MARKS = {
    UNIFORM: (style.NEUTRAL, "circle"),
    MATCHED: (style.CLASS_COLOURS["negative"], "square"),
    SAME: (style.SERIES_COLOURS[0], "diamond-open"),
}
"""Colour and symbol of what is measured at a few angles only; the method's colour is the first."""


def draw(parts: RunParts) -> tuple[pd.DataFrame, go.Figure] | None:
    """The table and the figure of a run."""
    if parts.dial.empty:
        return None
    table = measure(parts.dial)
    model, n = parts.train.spec.model.name, int(parts.dial["n"].iloc[0])
    subtitle = f"{model}; {n} harmful dev prompts; harmless where it says so"
    drawn = parts.dial.loc[parts.dial["way"].isin(RANDOM), "n"]
    if not drawn.empty:
        subtitle += f"; random planes on {drawn.iloc[0]} of them"
    return table, figure(table, subtitle)


def measure(dial: pd.DataFrame) -> pd.DataFrame:
    """One row per way, class and angle: means over draws, and their range.

    Returns:
        ``way``, ``prompt_class``, ``angle_deg``, ``draws``, and for ``refusal_score`` and
        ``opening_mass`` the mean with ``_low`` and ``_high``, the least and the most of the draws.
    """
    groups = dial.groupby(["way", "prompt_class", "angle_deg"], sort=False)
    columns = {
        f"{name}{suffix}": (name, how)
        for name, _ in COLUMNS
        for suffix, how in (("", "mean"), ("_low", "min"), ("_high", "max"))
    }
    return groups.agg(draws=("draw", "size"), **columns).reset_index()


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Score above, opening mass below, against the angle; bars span the random draws.

    The circle closes: 360° repeats 0°. Below half of the opening mass (dotted) the score says
    little, since the answer opens like neither a refusal nor an answer.
    """
    drawn = style.two_panels()
    table = _with_unsteered(table)
    looks = style.series(HEADINGS.values())
    for (way, label), name in HEADINGS.items():
        here = (table["way"] == way) & (table["prompt_class"] == label)
        rows = table.loc[here].sort_values("angle_deg")
        if rows.empty:
            continue
        lone = way in MARKS
        colour, dash = looks[name]
        colour, symbol = MARKS.get(way, (colour, "circle"))
        closed = rows.loc[rows["angle_deg"] == 0].assign(angle_deg=360.0)
        rows = rows if lone else pd.concat([rows, closed])
        for panel, (column, _) in enumerate(COLUMNS, start=1):
            spread = {
                "type": "data",
                "symmetric": False,
                "array": rows[f"{column}_high"] - rows[column],
                "arrayminus": rows[column] - rows[f"{column}_low"],
            }
            drawn.add_trace(
                go.Scatter(
                    x=rows["angle_deg"],
                    y=rows[column],
                    mode="markers" if lone else "lines+markers",
                    name=name,
                    legendgroup=name,
                    showlegend=panel == 1,
                    line={"color": colour, "dash": dash, "width": 3.5 if way == METHOD else 1.8},
                    marker={"color": colour, "symbol": symbol, "size": 10 if lone else 6},
                    error_y=spread if way in RANDOM else None,
                    hovertemplate=f"{name}, %{{x}}°: %{{y:.2f}}<extra></extra>",
                ),
                row=panel,
                col=1,
            )
    style.level(drawn, 0, row=1, col=1)
    style.level(drawn, 0.5, row=2, col=1)
    for panel, (_, title) in enumerate(COLUMNS, start=1):
        drawn.update_yaxes(title_text=title, row=panel, col=1)
    drawn.update_yaxes(range=[0, 1.03], row=2, col=1)
    drawn.update_xaxes(tickvals=list(range(0, 361, 45)), range=[-6, 366])
    drawn.update_xaxes(title_text="θ (degrees)", row=2, col=1)
    return style.layout(drawn, "The dial: refusal against the angle", subtitle, height=620)


def _with_unsteered(table: pd.DataFrame) -> pd.DataFrame:
    """All rotations by an angle start from the unsteered model, which is measured once."""
    is_start = (table["angle_deg"] == 0) & (table["way"] == METHOD)
    start = table.loc[is_start & (table["prompt_class"] == "positive")]
    return pd.concat([table, start.assign(way=ALL_SITES)], ignore_index=True)
