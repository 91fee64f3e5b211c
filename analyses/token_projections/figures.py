"""One prompt and its answer as a heatmap: tokens downwards, sites across, a panel per condition."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses import style
from analyses.tokens import legible
from ss_lens import UserError

ARROWS = "→↗↑↖←↙↓↘"
ROW, BELOW = 19, 90
"""Pixels of a token, and of what stands below the tokens: the names of the sites and the scale."""


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Colour: the projection onto b1 as a part of the norm; arrow: the angle in the plane.

    An arrow to the right is 0° (b1), one upwards 90° (b2), in steps of 45°; hovering tells the
    angle itself. A line parts the prompt from the answer.

    Raises:
        UserError: the rows of several prompts.
    """
    prompts = table[["prompt_class", "prompt_index"]].drop_duplicates()
    if len(prompts) != 1:
        raise UserError(
            f"a token heatmap shows one prompt; got the rows of {len(prompts)}. Select one by "
            "prompt_class and prompt_index."
        )
    conditions = list(dict.fromkeys(table["condition"]))
    sites = list(dict.fromkeys(table["site"]))
    drawn = make_subplots(
        rows=1, cols=len(conditions), subplot_titles=conditions, horizontal_spacing=0.02
    )
    limit = float(table["cos_1"].abs().max()) or 1.0
    longest = int(table["position"].max()) + 1
    for col, (_, rows) in enumerate(table.groupby("condition", sort=False), start=1):
        colour, angle, p1, p2 = (
            rows.pivot(index="position", columns="site", values=column)[sites].to_numpy(float)
            for column in ("cos_1", "angle_deg", "p1", "p2")
        )
        first = rows.query("site == @sites[0]").sort_values("position")
        drawn.add_trace(
            go.Heatmap(
                x=list(range(len(sites))),
                y=first["position"],
                z=colour,
                customdata=np.dstack(
                    [p1, p2, angle, np.tile(first["token"].map(legible), (len(sites), 1)).T]
                ),
                hovertemplate="%{customdata[3]}: p1 %{customdata[0]:.3g}, p2 %{customdata[1]:.3g}"
                "<br>angle %{customdata[2]:.0f}°, %{z:.3f} of the norm along b1<extra></extra>",
                text=[[arrow(a) for a in of_token] for of_token in angle],
                texttemplate="%{text}",
                textfont={"size": 13},
                coloraxis="coloraxis",
                **{"xgap": 2, "ygap": 1},
            ),
            row=1,
            col=col,
        )
        edge = int(first["is_prompt"].sum()) - 0.5
        drawn.add_shape(
            **{"type": "line", "x0": -0.5, "x1": len(sites) - 0.5, "y0": edge, "y1": edge},
            line={"color": "black", "width": 2},
            row=1,
            col=col,
        )
        drawn.update_yaxes(
            tickvals=first["position"].tolist(),
            ticktext=first["token"].map(legible).tolist(),
            tickfont={"size": 11},
            side="left" if col == 1 else "right",
            **{"range": [longest - 0.5, -0.5], "ticks": ""},
            row=1,
            col=col,
        )
        drawn.update_xaxes(
            tickvals=list(range(len(sites))),
            ticktext=sites,
            tickfont={"size": 11},
            **{"range": [-0.5, len(sites) - 0.5], "ticks": "", "tickangle": -90},
            row=1,
            col=col,
        )
    said = f"{subtitle}. Colour: part of the norm along b1; arrow: the angle in the plane to 45°, "
    said = said.removeprefix(". ") + "rightwards b1 (0°), upwards b2; the line ends the prompt."
    drawn = style.layout(drawn, "Tokens in the plane", said, height=190 + ROW * longest)
    return style.room_below(drawn, BELOW).update_layout(
        margin={"l": 110, "r": 110},
        coloraxis={
            "colorscale": style.DIVERGING,
            **{"cmin": -limit, "cmax": limit, "cmid": 0},
            "colorbar": {
                "title": {"text": "part of the norm along b1", "side": "top"},
                **{"orientation": "h", "thickness": 10, "nticks": 5, "tickangle": 0},
                **{"x": 0.5, "y": 0, "yanchor": "top", "ypad": 84},
            },
        },
    )


def arrow(angle_deg: float) -> str:
    """The arrow nearest to an angle; nothing where there is none.

    >>> arrow(0), arrow(100), arrow(350), arrow(math.nan)
    ('→', '↑', '→', '')
    """
    return "" if math.isnan(angle_deg) else ARROWS[round(angle_deg / 45) % 8]
