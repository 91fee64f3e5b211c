"""The figures of drift: the dial on foreign prompts, and how far apart the planes are."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import null_bands, style
from analyses.drift.geometry import BETWEEN


def figure(dial: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """A panel per source measured on, a line per source calibrated on; bands are 95 % intervals.

    Of random planes the band is that of most of their draws, and there is no line.
    """
    random = null_bands.null_rows(dial)
    nulls = dial.loc[random].rename(
        columns={
            **{"calibrated_on": "null", "low": "refusal_score_low", "high": "refusal_score_high"},
        }
    )
    dial = dial.loc[~random]
    names = [*dict.fromkeys(dial["measured_on"])]
    across = min(2, len(names))
    drawn = make_subplots(
        rows=-(-len(names) // across),
        cols=across,
        shared_xaxes=True,
        shared_yaxes=True,
        subplot_titles=[f"measured on {name}" for name in names],
        horizontal_spacing=0.05,
        vertical_spacing=0.12,
    )
    looks, crossed = style.series(dial["calibrated_on"]), style.Crosses()
    for place, name in enumerate(names):
        row, col = place // across + 1, place % across + 1
        found = nulls.loc[nulls["measured_on"] == name]
        null_bands.draw(drawn, found, row=row, col=col, in_legend=place == 0)
        for made_on, look in looks.items():
            rows = dial.loc[(dial["measured_on"] == name) & (dial["calibrated_on"] == made_on)]
            rows = rows.sort_values("angle_deg")
            x, low, high = (rows[column].to_numpy() for column in ("angle_deg", "low", "high"))
            drawn.add_trace(style.band(x, low, high, look.colour, made_on), row=row, col=col)
            drawn.add_trace(
                go.Scatter(
                    x=x,
                    y=rows["refusal_score"],
                    mode="lines+markers",
                    name=f"calibrated on {made_on}",
                    legendgroup=made_on,
                    showlegend=place == 0,
                    line={"color": look.colour, "dash": look.dash, "width": 1.5},
                    marker={"symbol": look.symbol, "size": 6, "color": look.colour},
                    hovertemplate="%{x:g}°: %{y:+.2f} nats<extra></extra>",
                ),
                row=row,
                col=col,
            )
            crossed.draw(
                drawn,
                rows["angle_deg"],
                rows["refusal_score"],
                rows["opening_mass"],
                row=row,
                col=col,
            )
        style.level(drawn, 0, row=row, col=col)
    style.explain(drawn, style.BAND, "95 % interval")
    drawn.update_xaxes(tickvals=list(range(0, 361, 90)))
    drawn.update_xaxes(title_text="angle (degrees)", row=-(-len(names) // across))
    drawn.update_yaxes(title_text="refusal score (nats)", col=1)
    height = 160 + 260 * -(-len(names) // across)
    return style.layout(drawn, "One dial on other sources of prompts", subtitle, height=height)


def geometry_figure(geometry: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Both principal angles of each pair; dotted is what random planes reach in 5 % of draws."""
    labels = [
        f"{row['first']} – {row['second']}"
        if row["kind"] == BETWEEN
        else f"{row['first']}, two halves"
        for row in geometry.to_dict("records")
    ]
    drawn = go.Figure()
    for column, name, symbol in (
        ("angle_1_deg", "smaller principal angle", "circle"),
        ("angle_2_deg", "larger principal angle", "circle-open"),
        ("b1_angle_deg", "between the directions", "diamond"),
    ):
        drawn.add_trace(
            go.Scatter(
                x=geometry[column],
                y=labels,
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 10, "color": style.CLASS_COLOURS["negative"]},
                hovertemplate="%{y}: %{x:.1f}°<extra></extra>",
            )
        )
    drawn.add_vline(float(geometry["random_1_deg"].iloc[0]), line=style.DOTTED)
    style.explain_level(drawn, "random planes: smaller angle, 5th percentile")
    drawn.update_yaxes(autorange="reversed", automargin=True)
    drawn.update_xaxes(title_text="degrees", rangemode="tozero")
    height = 200 + 36 * len(labels)
    return style.layout(drawn, "How far apart the planes are", subtitle, height=height)
