"""The matrix as a map of changes and as curves over the angle; the front of effect and cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import null_bands, style
from analyses.entanglement.measures import DIVERGENCE, MASS, OWN, REQUESTS
from ss_lens.experiments.dial.ways import MATCHED


def figure(matrix: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Rows as measured, columns the angles; each cell is the mean, its colour the change.

    Rows have units of their own, so colours run to the largest change of each row. A cell whose
    interval of the change covers zero is in brackets.
    """
    own = matrix.loc[(matrix["plane"] == OWN) & (matrix["kind"] != MASS)]
    names = [*dict.fromkeys(own["row"])]
    angles = sorted(own["angle_deg"].dropna().unique())
    columns = [math.nan, *angles]
    heads = ["unsteered", *(f"{angle:g}°" for angle in angles)]
    colours, texts, notes = [], [], []
    for name in names:
        rows = own.loc[own["row"] == name]
        largest = float(rows["change"].abs().max()) or 1.0  # NaN where no item has a value
        cells = [_cell(rows, angle) for angle in columns]
        colours.append([cell["change"] / largest for cell in cells])
        texts.append([_text(cell) for cell in cells])
        notes.append([_note(name, cell) for cell in cells])
    labels = [f"{name} ({own[own['row'] == name]['unit'].iloc[0]})" for name in names]
    scale = [(i / (len(style.DIVERGING) - 1), c) for i, c in enumerate(style.DIVERGING)]
    drawn = go.Figure(
        go.Heatmap(
            x=heads,
            y=labels,
            z=colours,
            zmin=-1,
            zmax=1,
            colorscale=scale,
            text=texts,
            texttemplate="%{text}",
            customdata=notes,
            hovertemplate="%{customdata}<extra></extra>",
            colorbar={"title": "change /<br>largest"},
            xgap=2,
            ygap=2,
        )
    )
    drawn.update_yaxes(autorange="reversed", automargin=True)
    drawn.update_xaxes(type="category", title_text="angle")
    height = 200 + 34 * len(names)
    title = "What else moves (in brackets: change not told from zero)"
    return style.layout(drawn, title, subtitle, height=height, narrowest=110 * len(heads))


def angle_figure(matrix: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """The change of each source's score, and the divergence, over the angle.

    These are what random planes are measured by as well; their band is that of most of the draws.
    """
    measured = matrix.loc[matrix["kind"].isin((REQUESTS, DIVERGENCE)) & matrix["angle_deg"].notna()]
    names = [*dict.fromkeys(measured["row"])]
    units = measured.drop_duplicates("row").set_index("row")["unit"]
    across = min(2, len(names))
    down = -(-len(names) // across)
    drawn = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[f"{name} ({units[name]})" for name in names],
        horizontal_spacing=0.1,
        vertical_spacing=0.3 / down,
    )
    crossed, colour = style.Crosses(), style.CLASS_COLOURS["negative"]
    for place, name in enumerate(names):
        row, col = place // across + 1, place % across + 1
        here = measured.loc[measured["row"] == name]
        nulls = here.loc[here["plane"] != OWN].assign(null=MATCHED)
        if len(nulls):
            found = null_bands.bands(nulls, ("change",))
            null_bands.draw(drawn, found, "change", row=row, col=col, in_legend=place == 0)
        own = here.loc[here["plane"] == OWN].sort_values("angle_deg")
        x = own["angle_deg"].to_numpy()
        low, high = own["change_low"].to_numpy(), own["change_high"].to_numpy()
        drawn.add_trace(style.band(x, low, high, colour, name), row=row, col=col)
        drawn.add_trace(
            go.Scatter(
                x=x,
                y=own["change"],
                mode="lines+markers",
                name="calibration",
                legendgroup="calibration",
                showlegend=place == 0,
                line={"color": colour, "width": 1.5},
                marker={"size": 6, "color": colour},
                hovertemplate="%{x:g}°: %{y:+.3f}<extra></extra>",
            ),
            row=row,
            col=col,
        )
        of_mass = matrix.loc[(matrix["row"] == f"{name}: opening mass") & (matrix["plane"] == OWN)]
        if len(of_mass):
            mass = own["angle_deg"].map(of_mass.set_index("angle_deg")["mean"])
            crossed.draw(drawn, own["angle_deg"], own["change"], mass, row=row, col=col)
        style.level(drawn, 0, row=row, col=col)
    style.explain(drawn, style.BAND, "95 % interval")
    drawn.update_xaxes(tickvals=list(range(0, 361, 90)))
    drawn.update_xaxes(title_text="angle (degrees)", row=down)
    height = 160 + 240 * down
    return style.layout(drawn, "What moves with the angle: changes", subtitle, height=height)


def front_figure(front: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Effect against divergence and against capability; grey are the random planes."""
    own, nulls = front.loc[front["plane"] == OWN], front.loc[front["plane"] != OWN]
    panels = [("kl", "KL (nats per token)")]
    if own["capability"].notna().any():
        panels.append(("capability", "change of capability"))
    drawn = make_subplots(rows=1, cols=len(panels), shared_yaxes=True, horizontal_spacing=0.05)
    blue, orange = style.CLASS_COLOURS["negative"], style.CLASS_COLOURS["positive"]
    for panel, (cost, title) in enumerate(panels, start=1):
        if len(nulls):
            low, high = np.quantile(nulls["effect"], [0.025, 0.975])
            drawn.add_shape(
                type="rect",
                **{"x0": 0, "x1": 1, "xref": "x domain", "y0": low, "y1": high},
                **{"fillcolor": "rgba(0, 0, 0, 0.12)", "line": {"width": 0}, "layer": "below"},
                **{"row": 1, "col": panel},
            )
            if cost == "kl":
                drawn.add_trace(
                    go.Scatter(
                        x=nulls[cost],
                        y=nulls["effect"],
                        mode="markers",
                        name="random planes",
                        marker={"color": style.NEUTRAL, "size": 5, "symbol": "circle-open"},
                        hovertemplate="%{y:+.2f} nats at KL %{x:.3f}<extra></extra>",
                    ),
                    row=1,
                    col=panel,
                )
        for told, colour, symbol, rows in (
            ("on the front", orange, "diamond", own.loc[own["on_front"]]),
            ("dominated", blue, "circle", own.loc[~own["on_front"].astype(bool)]),
        ):
            if rows.empty:
                continue
            drawn.add_trace(
                go.Scatter(
                    x=rows[cost],
                    y=rows["effect"],
                    mode="markers+text",
                    name=told,
                    legendgroup=told,
                    showlegend=panel == 1,
                    marker={"color": colour, "symbol": symbol, "size": 10},
                    text=[f"{angle:g}°" for angle in rows["angle_deg"]],
                    textposition="top right",
                    error_x=_whiskers(rows, cost, colour),
                    error_y=_whiskers(rows, "effect", colour),
                    customdata=rows["front_share"],
                    hovertemplate="%{text}: %{y:+.2f} nats, cost %{x:.3f}<br>on the front in "
                    "%{customdata:.0%} of draws<extra></extra>",
                ),
                row=1,
                col=panel,
            )
        drawn.update_xaxes(title_text=title, row=1, col=panel)
    drawn.update_yaxes(title_text="effect, toward the goal (nats)", row=1, col=1)
    style.level(drawn, 0, row=1, col=1)
    style.explain(drawn, style.BAR, "95 % interval")
    if len(nulls):
        style.explain(drawn, style.BAND, "95 % of random planes")
    return style.layout(drawn, "Effect against its costs", subtitle)


def _whiskers(rows: pd.DataFrame, name: str, colour: str) -> dict[str, object]:
    return {
        **{"type": "data", "color": colour, "thickness": 1, "width": 3},
        "array": rows[f"{name}_high"] - rows[name],
        "arrayminus": rows[name] - rows[f"{name}_low"],
    }


def _cell(rows: pd.DataFrame, angle: float) -> dict[str, Any]:
    here = rows["angle_deg"].isna() if math.isnan(angle) else rows["angle_deg"] == angle
    return rows[here].iloc[0].to_dict()


def _text(cell: dict) -> str:
    if math.isnan(cell["mean"]):
        return "–"
    shown = f"{cell['mean']:.2f}"
    unsettled = not math.isnan(cell["angle_deg"]) and cell["change_low"] <= 0 <= cell["change_high"]
    return f"[{shown}]" if unsettled else shown


def _note(name: str, cell: dict) -> str:
    return (
        f"{name}: {cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]<br>change "
        f"{cell['change']:+.3f} [{cell['change_low']:+.3f}, {cell['change_high']:+.3f}], "
        f"n = {cell['n']}"
    )
