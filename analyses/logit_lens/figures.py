"""The logit lens drawn: the score by layer, and the likeliest token of each layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style
from analyses.tokens import legible

UNSTEERED = "unsteered"
EMBEDDINGS = -1
SHADE = "rgba(0, 158, 115, 0.3)"
BELOW = 84
"""Pixels of the scale below the tokens."""


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Log-odds of refusing openings by layer above, their probability below, a panel per class.

    Bands are 95 % intervals over prompts. Blocks with steered sites are shaded. The last layer is
    the model's own prediction.
    """
    classes = list(dict.fromkeys(table["prompt_class"]))
    drawn = make_subplots(
        rows=2,
        cols=len(classes),
        shared_xaxes=True,
        shared_yaxes="rows",  # type: ignore[arg-type]
        row_heights=[0.64, 0.36],
        vertical_spacing=0.06,
        horizontal_spacing=0.04,
        subplot_titles=classes,
    )
    angles = ways(table)
    looks = {**style.series(angles), UNSTEERED: style.Look("#000000", "solid", "circle")}
    for col, (_, of_class) in enumerate(table.groupby("prompt_class", sort=False), start=1):
        for name, rows in by_way(of_class, angles):
            look = looks[name]
            x = rows["layer"].to_numpy()
            low, high = rows["low"].to_numpy(), rows["high"].to_numpy()
            if not np.isnan(low).any():
                drawn.add_trace(style.band(x, low, high, look.colour, name), row=1, col=col)
            for row, column in ((1, "refusal_score"), (2, "opening_mass")):
                drawn.add_trace(
                    go.Scatter(
                        x=x,
                        y=rows[column],
                        mode="lines",
                        name=name,
                        legendgroup=name,
                        line={"color": look.colour, "dash": look.dash, "width": 2},
                        customdata=rows[["top_1", "opening_mass", "refusal_score"]],
                        hovertemplate="layer %{x}: %{customdata[2]:.2f} nats<br>opening mass "
                        "%{customdata[1]:.2g}<br>likeliest: %{customdata[0]}",
                        showlegend=col == row == 1,
                    ),
                    row=row,
                    col=col,
                )
        style.level(drawn, 0, row=1, col=col)
        for layer in of_class.loc[of_class["steers"] > 0, "layer"].unique():
            for row in (1, 2):
                drawn.add_shape(
                    **{"type": "rect", "x0": layer - 0.5, "x1": layer + 0.5, "y0": 0, "y1": 1},
                    **{"yref": "y domain", "fillcolor": style.SELECTED, "line_width": 0},
                    layer="below",
                    row=row,
                    col=col,
                )
        drawn.update_xaxes(title_text="layer", row=2, col=col)
    last = int(table["layer"].max())
    drawn.update_xaxes(range=[EMBEDDINGS - 0.5, last + 0.5], ticks="outside")
    ends = table[["refusal_score", "low", "high"]].to_numpy(float)
    low, high = min(0.0, float(np.nanmin(ends))), max(0.0, float(np.nanmax(ends)))
    edge = 0.05 * (high - low) or 1.0
    drawn.update_yaxes(range=[low - edge, high + edge], row=1)
    drawn.update_yaxes(title_text="log-odds of refusing<br>openings (nats)", row=1, col=1)
    drawn.update_yaxes(title_text="probability<br>of any opening", range=[0, 1.02], row=2, col=1)
    if not table["low"].isna().all():
        style.explain(drawn, style.BAND, "95 % interval over prompts")
    style.explain(drawn, {**style.BAND, "color": SHADE}, "block with steered sites")
    said = f"{subtitle}. Layer −1: the embeddings; the last layer is the model's own prediction."
    title = "Logit lens: refusing or complying, by layer"
    return style.layout(drawn, title, said.removeprefix(". "), height=560, narrowest=480)


def token_figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """The likeliest token of each layer, coloured by the log-odds, a panel per class."""
    classes = list(dict.fromkeys(table["prompt_class"]))
    drawn = make_subplots(
        rows=1,
        cols=len(classes),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=classes,
    )
    angles = ways(table)
    layers = sorted(table["layer"].unique())
    later = table["layer"] >= layers[len(layers) // 2]
    limit = float(table.loc[later, "refusal_score"].abs().max()) or 1.0
    named = table.assign(way=names_of(table))
    for col, (_, of_class) in enumerate(named.groupby("prompt_class", sort=False), start=1):
        score, top, p, mass = (
            of_class.pivot(index="layer", columns="way", values=column).loc[layers, angles]
            for column in ("refusal_score", "top_1", "p_1", "opening_mass")
        )
        drawn.add_trace(
            go.Heatmap(
                x=angles,
                y=layers,
                z=score,
                text=top.map(legible),
                texttemplate="%{text}",
                textfont={"size": 11},
                customdata=np.dstack([p, mass]),
                hovertemplate="layer %{y}, %{x}: %{text} (%{customdata[0]:.2f})<br>%{z:.2f} nats, "
                "opening mass %{customdata[1]:.2g}<extra></extra>",
                coloraxis="coloraxis",
                xgap=2,
            ),
            row=1,
            col=col,
        )
    drawn.update_yaxes(ticks="", range=[layers[0] - 0.5, layers[-1] + 0.5])
    drawn.update_yaxes(title_text="layer", row=1, col=1)
    drawn.update_xaxes(ticks="", side="bottom")
    said = (
        f"{subtitle}. The token of the highest mean probability at the last prompt token; colour:"
    )
    said = (
        said.removeprefix(". ")
        + " log-odds of refusing against complying openings, to the largest of the upper half."
    )
    height = 150 + 21 * len(layers)
    drawn = style.layout(drawn, "Logit lens: the likeliest token", said, height=height)
    return style.room_below(drawn, BELOW).update_layout(
        coloraxis={
            "colorscale": style.DIVERGING,
            **{"cmin": -limit, "cmax": limit, "cmid": 0},
            "colorbar": {
                "title": {"text": "log-odds of refusing openings (nats)", "side": "top"},
                **{"orientation": "h", "thickness": 10, "nticks": 5, "tickangle": 0},
                **{"x": 0.5, "y": 0, "yanchor": "top", "ypad": 74},
            },
        },
    )


def ways(table: pd.DataFrame) -> list[str]:
    """The angles as columns and curves name them, unsteered first."""
    return list(dict.fromkeys(names_of(table)))


def names_of(table: pd.DataFrame) -> pd.Series:
    return table["angle_deg"].map(lambda a: UNSTEERED if np.isnan(a) else f"{a:g}°")


def by_way(rows: pd.DataFrame, names: list[str]) -> list[tuple[str, pd.DataFrame]]:
    named = rows.assign(way=names_of(rows))
    return [(name, named.query("way == @name").sort_values("layer")) for name in names]
