"""What :mod:`analyses.stability` measured, drawn: per site, and per plane."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import style
from ss_lens.models.sites import Site

SELECTED, NOT_SELECTED, NULL = "#009E73", "#BBBBBB", "#000000"
ANGLES = {"angle_1_deg": ("smaller", "#56B4E9"), "angle_2_deg": ("larger", "#0072B2")}


def site_figure(sites: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Class means with their intervals above, how often each site is selected below.

    The wide band is over whole recalibrations, each with its own ``b1``; the narrow, darker one
    over prompts alone with the full sample's ``b1``.
    """
    drawn = style.two_panels()
    table = sites.query("kind == 'bootstrap'")
    null = sites.query("kind == 'shuffled'")
    names = [Site.parse(name) for name in table["site"]]
    x = style.depth(names)
    for label, colour in style.CLASS_COLOURS.items():
        for interval in ("own", "fixed"):
            low, high = (table[f"{label}_{interval}_{end}"].to_numpy() for end in ("low", "high"))
            drawn.add_trace(style.band(x, low, high, colour, label), row=1, col=1)
        drawn.add_trace(
            go.Scatter(
                x=x,
                y=table[label],
                mode="lines+markers",
                name=label,
                line={"color": colour, "width": 1.5, "dash": style.CLASS_LOOKS[label].dash},
                marker={"size": 5, "symbol": style.CLASS_LOOKS[label].symbol},
                text=table["site"],
                hovertemplate="%{text}: %{y:.3f}",
            ),
            row=1,
            col=1,
        )
    chosen = table["selected"].to_numpy(bool)
    for mask, colour, name in (
        (chosen, SELECTED, "selected by all prompts"),
        (~chosen, NOT_SELECTED, "not selected"),
    ):
        drawn.add_trace(
            go.Bar(
                x=x[mask],
                y=table.loc[mask, "share_selected"],
                name=name,
                marker={"color": colour},
                width=0.8 * _spacing(x),
                text=table.loc[mask, "site"],
                textposition="none",
                customdata=table.loc[mask, ["share_direction"]],
                hovertemplate="%{text}: selected in %{y:.1%} of draws<br>direction site in "
                "%{customdata[0]:.1%}",
            ),
            row=2,
            col=1,
        )
    drawn.add_trace(
        go.Scatter(
            x=style.depth([Site.parse(name) for name in null["site"]]),
            y=null["share_selected"],
            mode="markers",
            name="under shuffled labels",
            marker={
                "color": NULL,
                "symbol": "line-ew",
                "size": 8,
                "line": {"width": 1.5, "color": NULL},
            },
            text=null["site"],
            hovertemplate="%{text}: %{y:.1%} of shuffles",
        ),
        row=2,
        col=1,
    )
    style.explain(drawn, style.BAND, "95 % of whole recalibrations")
    style.explain(drawn, style.DARK_BAND, "95 % over prompts, with one direction")
    style.level(drawn, 0, row=1, col=1)
    place = x[table["is_direction_site"].to_numpy(bool)][0]
    style.upright(drawn, place, row=1, col=1, dash="dash")
    drawn.add_annotation(
        x=place,
        y=1,
        yref="y domain",
        yanchor="bottom",
        text=f"direction site {table.loc[table['is_direction_site'], 'site'].iloc[0]}",
        showarrow=False,
        row=1,
        col=1,
    )
    drawn.update_yaxes(title_text="projection onto b1<br>(cosine)", row=1, col=1)
    drawn.update_yaxes(title_text="share of draws<br>that select", range=[0, 1.05], row=2, col=1)
    drawn.update_yaxes(tickformat=".0%", row=2, col=1)
    drawn.update_xaxes(range=[x[0] - _spacing(x), x[-1] + _spacing(x)])
    drawn.update_xaxes(title_text=style.depth_title(names), row=2, col=1)
    drawn = style.layout(drawn, "Which sites stay selected on other prompts", subtitle, height=600)
    return drawn.update_layout(barmode="overlay")


def plane_figure(draws: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Angles to the full sample's plane above, numbers of selected sites below, per kind of draw.

    Boxes hold the middle half of the draws, whiskers the middle 95 %.
    """
    drawn = style.two_panels()
    groups = groups_of(draws, "<br>")
    for column, (name, colour) in ANGLES.items():
        _add_boxes(drawn, groups, column, f"{name} principal angle", colour, panel=1)
    _add_boxes(drawn, groups, "n_selected", "selected sites", SELECTED, panel=2)
    full = int(draws.loc[draws["kind"] == "full", "n_selected"].iloc[0])
    style.level(drawn, full, row=2, col=1)
    style.explain_level(drawn, f"selected by all prompts: {full}")
    drawn.update_yaxes(
        title_text="angle to the plane<br>of all prompts", ticksuffix="°", row=1, col=1
    )
    style.explain(drawn, style.BOX, "box: middle half; whiskers: middle 95 %")
    drawn.update_yaxes(range=[0, 92], tickvals=[0, 15, 30, 45, 60, 75, 90], row=1, col=1)
    drawn.update_yaxes(title_text="selected sites", rangemode="tozero", row=2, col=1)
    drawn = style.layout(drawn, "How far the plane strays", subtitle, height=600)
    return drawn.update_layout(boxmode="group")


def groups_of(draws: pd.DataFrame, break_: str) -> dict[str, pd.DataFrame]:
    """Draws by what they are called on the axis, from no calibration to the whole sample."""
    named = {
        f"random{break_}planes": draws.query("kind == 'random'"),
        f"shuffled{break_}labels": draws.query("kind == 'shuffled'"),
    }
    for size, rows in draws.query("kind == 'subsample'").groupby("n_positive", sort=True):
        named[f"{size} per{break_}class"] = rows
    named[f"bootstrap{break_}of all"] = draws.query("kind == 'bootstrap'")
    return named


def _add_boxes(
    drawn: go.Figure,
    groups: dict[str, pd.DataFrame],
    column: str,
    name: str,
    colour: str,
    panel: int,
) -> None:
    values = [
        np.quantile(rows[column], (0.025, 0.25, 0.5, 0.75, 0.975)) for rows in groups.values()
    ]
    low, q1, median, q3, high = np.array(values).T
    drawn.add_trace(
        go.Box(
            x=list(groups),
            lowerfence=low,
            q1=q1,
            median=median,
            q3=q3,
            upperfence=high,
            name=name,
            offsetgroup=name,
            alignmentgroup=str(panel),
            marker={"color": colour},
            line={"width": 1.5},
        ),
        row=panel,
        col=1,
    )


def _spacing(x: np.ndarray) -> float:
    return float(x[1] - x[0]) if len(x) > 1 else 0.5
