"""The effects of single sites drawn along the depth of the model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import style
from analyses.site_effects.conditions import ALL, LEFT_OUT, ONLY, RANDOM
from ss_lens.models.sites import Site

HEADINGS = {ONLY: "this site alone<br>(nats)", LEFT_OUT: "added to the<br>others (nats)"}


def figure(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Above: each site steered alone; below: what it adds to the others; a colour per class.

    Bars are 95 % intervals over prompts. Dashes are single sites in random planes.
    """
    drawn, crossed = style.two_panels(), style.Crosses()
    control = table.query("kind == @RANDOM")
    if len(control):
        drawn.add_trace(
            go.Scatter(
                x=places(control),
                y=control["effect"],
                mode="markers",
                name="random planes",
                marker={
                    "symbol": "line-ew",
                    **{"size": 9, "line": {"width": 1.5, "color": style.NEUTRAL}},
                },
                text=control["site"],
                customdata=control[["prompt_class"]],
                hovertemplate="%{text} in a random plane, %{customdata[0]}: %{y:+.2f} nats",
            ),
            row=1,
            col=1,
        )
    for label, of_class in table.groupby("prompt_class", sort=False):
        of_kind, look = dict(iter(of_class.groupby("kind"))), style.CLASS_LOOKS[str(label)]
        whole = signed(of_kind[ALL]["effect"].iloc[0])
        solid = {"symbol": look.symbol, "color": look.colour, "size": 7}
        style.explain(drawn, solid, f"{label} prompts (all sites: {whole} nats)")
        for panel, kind in enumerate((ONLY, LEFT_OUT), start=1):
            rows = of_kind[kind]
            open_ = (rows["low"] <= 0) & (rows["high"] >= 0)
            drawn.add_trace(
                go.Scatter(
                    x=places(rows),
                    y=rows["effect"],
                    error_y=_interval(rows),
                    mode="markers",
                    name=str(label),
                    legendgroup=str(label),
                    marker={
                        "symbol": style.opened(look.symbol, open_),
                        **{"color": look.colour, "size": 7},
                    },
                    text=rows["site"],
                    customdata=rows[["low", "high", "opening_mass"]],
                    hovertemplate="%{text}: %{y:+.2f} [%{customdata[0]:+.2f}, "
                    "%{customdata[1]:+.2f}] nats<br>opening mass %{customdata[2]:.2f}",
                    showlegend=False,
                ),
                row=panel,
                col=1,
            )
            crossed.draw(
                drawn,
                pd.Series(places(rows)),
                rows["effect"].reset_index(drop=True),
                rows["opening_mass"],
                row=panel,
            )
    style.explain(drawn, style.BAR, "95 % interval over prompts")
    style.explain(drawn, style.OPEN, "the interval includes 0")
    sites = [Site.parse(site) for site in dict.fromkeys(table.loc[table["site"] != "", "site"])]
    streams = " then ".join(dict.fromkeys(site.stream for site in sorted(sites)))
    for panel, kind in enumerate((ONLY, LEFT_OUT), start=1):
        shown = table["kind"].isin([kind, RANDOM] if kind == ONLY else [kind])
        ends = table.filter(["effect", "low", "high"])[shown].to_numpy(float)
        limit = 1.08 * float(np.nanmax(np.abs(ends))) or 1.0
        drawn.update_yaxes(title_text=HEADINGS[kind], range=[-limit, limit], row=panel, col=1)
        style.level(drawn, 0, row=panel, col=1)
    drawn.update_xaxes(title_text=f"layer (within each: {streams})", row=2, col=1)
    said = f"{subtitle}. Change of the log-odds of refusing openings, by each site."
    return style.layout(drawn, "Which site does it", said.removeprefix(". "), height=560)


def places(rows: pd.DataFrame) -> np.ndarray:
    """Along the depth, the classes slightly apart."""
    shift = rows["prompt_class"].map({"positive": -0.06, "negative": 0.06}).to_numpy(float)
    streams = sorted({Site.parse(site).stream for site in rows["site"]}, key=str)
    sites = [Site.parse(site) for site in rows["site"]]
    apart = 1 if len(streams) < 2 else 0.5
    return style.depth(sites) + shift * apart


def _interval(rows: pd.DataFrame) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["effect"]).to_numpy(),
        "arrayminus": (rows["effect"] - rows["low"]).to_numpy(),
        "thickness": 1,
        "width": 2,
    }


def signed(value: float) -> str:
    """A number with its sign, as it is set in print."""
    return f"{value:+.2f}".replace("-", "−")
