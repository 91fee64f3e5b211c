"""How all figures look, on screen and in print: colours, markers, dashes, axes and layout."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ss_lens.models.sites import STREAMS, Site


@dataclass(frozen=True)
class Look:
    """How a series is drawn, named as Plotly does; dash and symbol alone tell it apart in grey."""

    colour: str
    dash: str
    symbol: str


# Okabe–Ito, readable with every kind of colour vision.
CLASS_COLOURS = {"positive": "#D55E00", "negative": "#0072B2"}
CLASS_LOOKS = {
    "positive": Look(CLASS_COLOURS["positive"], "solid", "circle"),
    "negative": Look(CLASS_COLOURS["negative"], "dash", "square"),
}
LEVEL = 0.05
"""Of a corrected p: below it a variant is said to differ."""
FOREST_LOOKS = {
    "reference": Look("#000000", "solid", "diamond"),
    "differs": Look("#D55E00", "solid", "circle"),
    "open": Look("#0072B2", "solid", "square"),
}
SERIES_COLOURS = ("#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#0072B2", "#000000")
NEUTRAL = "#666666"
SELECTED = "rgba(0, 158, 115, 0.14)"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = (*("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star"),)
"""Filled. An open one says one thing everywhere: the data do not settle on which side it lies."""
LOW_MASS = 0.5
"""Below it a cross stands over a marker: the answers mostly open neither way, so that the score
says little."""
DIVERGING = (*("#E4F1FB", "#BFD9EC", "#ADBFCB", "#B0B0B0", "#C9925F", "#A3541C", "#5C2200"),)
"""From −1 to 1: it darkens all the way, so that the two ends differ in grey too."""
DOTTED = {"color": NEUTRAL, "width": 1, "dash": "dot"}
"""The line at a reference."""
WIDTH = 900
"""Pixels of a figure that a browser draws into a file; on screen it is as wide as its place."""
SUBTITLE_WIDTH = 90
"""Characters of the subtitle that fit in a line."""
_BELOW_AXIS, _LEGEND_ROW = 62, 30


def depth(sites: Sequence[Site]) -> np.ndarray:
    """Horizontal position of each site: its layer plus its place within the block."""
    present = sorted({site.stream for site in sites}, key=STREAMS.index)
    return np.array([site.layer + present.index(site.stream) / len(present) for site in sites])


def series(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name; among the first 42 no two share colour and dash, or symbol and dash."""
    return {
        name: Look(
            SERIES_COLOURS[i % len(SERIES_COLOURS)],
            DASHES[i % len(DASHES)],
            SYMBOLS[i % len(SYMBOLS)],
        )
        for i, name in enumerate(dict.fromkeys(names))
    }


def layout(
    figure: go.Figure,
    title: str,
    subtitle: str = "",
    height: int = 480,
    *,
    clear: int = 0,
    narrowest: int = 0,
) -> go.Figure:
    """Apply the common layout: the title above, the legend below, nothing over the panels.

    The figure is as wide as its place. Its height is fixed, with the legend's rows at
    :data:`WIDTH`; :data:`RESPONSIVE` counts them anew on a page.

    Args:
        figure: with its traces and annotations, which decide how much room they get.
        title: in one line.
        subtitle: what was measured and on what; wrapped to the width.
        height: in pixels, without the rows of the legend.
        clear: more pixels to keep free above and below the panels, for labels around a circle.
        narrowest: pixels that the panels need side by side; a page that is narrower scrolls.
    """
    lines = textwrap.wrap(subtitle, SUBTITLE_WIDTH)
    text = "<br>".join([title, *(f"<sup>{line}</sup>" for line in lines)])
    entries, entry = _legend_entries(figure)
    rows = 0 if entries < 2 else -(-entries // max(1, int((WIDTH - 100) / entry)))
    notes = cast("Iterable[Any]", figure.select_annotations({"yref": "paper"}))
    texts = [note.text for note in notes]
    headings = max((1 + text.count("<br>") for text in texts), default=0)
    above = 14 + 20 * headings + clear
    top = 34 + 22 * len(lines) + above
    below = _BELOW_AXIS + clear
    height += 2 * clear
    panels = height - top - below
    meta = {
        **{"title": title, "subtitle": subtitle, "narrowest": narrowest, "top": above},
        **{"height": panels + above + below + _LEGEND_ROW * rows},
        **{"entries": entries, "entry": entry, "row": _LEGEND_ROW, "below": below},
        "fixed": panels + above + below,
    }
    figure.update_layout(meta=meta)
    figure.update_shapes(opacity=1)  # the template makes lines and shades faint
    return figure.update_layout(
        template="simple_white",
        title={
            "text": text,
            **{"x": 0.01, "xanchor": "left"},
            **{"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 24}},
        },
        font={"family": "DejaVu Sans, Arial, sans-serif", "size": 13},
        margin={"l": 70, "r": 30, "t": top, "b": below + _LEGEND_ROW * rows},
        autosize=True,
        height=height + _LEGEND_ROW * rows,
        legend={
            "orientation": "h",
            "maxheight": 5000,  # pixels: or it would scroll
            **{"x": 0, "xanchor": "left", "yanchor": "top"},
            "y": -below / panels,
        },
        hovermode="closest",
    )


def room_below(figure: go.Figure, pixels: int) -> go.Figure:
    """More room below the panels of a figure that :func:`layout` was applied to, for a scale."""
    told = told_of(figure)
    grown = {name: told[name] + pixels for name in ("height", "fixed", "below")}
    layout = cast("Any", figure).layout
    return figure.update_layout(
        meta={**told, **grown},
        height=layout.height + pixels,
        margin={"b": layout.margin.b + pixels},
    )


RESPONSIVE = """
const gd = document.getElementById("{plot_id}"), told = gd.layout.meta;
if (told && told.entries > 1) {
  const fit = () => {
    const across = Math.max(1, Math.floor((gd.clientWidth - 100) / told.entry));
    const legend = told.row * Math.ceil(told.entries / across);
    const height = told.fixed + legend;
    if (Math.abs(gd.layout.height - height) > 1) {
      gd.style.height = gd.parentElement.style.height = height + "px";
      Plotly.relayout(gd, {"height": height, "margin.b": told.below + legend});
    }
  };
  fit();
  window.addEventListener("resize", fit);
}
"""
"""Gives a page's figure the height that the rows of its legend need at the page's width."""


def subtitle_of(figure: go.Figure) -> str:
    """What a figure was drawn of, as :func:`layout` was told."""
    return told_of(figure)["subtitle"]


def told_of(figure: go.Figure) -> dict[str, Any]:
    """What :func:`layout` was told and reckoned; empty where it was not called."""
    return cast("Any", figure).layout.meta or {}


def _legend_entries(figure: go.Figure) -> tuple[int, float]:
    """How many entries the legend has, and how many pixels the longest takes, by its length."""
    traces = cast("Iterable[Any]", figure.select_traces())  # plotly has it untyped
    shown = [trace.name for trace in traces if trace.name and trace.showlegend is not False]
    return len(shown), 55 + 7.5 * max(map(len, shown), default=0)


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str) -> go.Scatter:
    """A translucent band between two curves."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",  # or a curve of few points would get markers along its band
        fill="toself",
        fillcolor=f"rgba({red}, {green}, {blue}, 0.15)",
        line={"width": 0},
        hoverinfo="skip",
        name=name,
        showlegend=False,
    )


def two_panels() -> go.Figure:
    """A tall and a low panel above each other, over the same horizontal axis."""
    return make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.06
    )


def depth_title(sites: Sequence[Site]) -> str:
    """What stands along an axis of sites by depth."""
    streams = list(dict.fromkeys(site.stream for site in sites))
    return f"layer (each: {' then '.join(streams)})" if len(streams) > 1 else "layer"


def layer_ticks(sites: Sequence[Site]) -> dict[int, int]:
    """The places of the first sites of some layers, in the order of ``sites``."""
    layers = sorted({site.layer for site in sites})
    every = -(-len(layers) // 8)
    firsts = {sites[i].layer: i for i in reversed(range(len(sites)))}
    return {layer: firsts[layer] for layer in layers[::every]}


def log_ticks(figure: go.Figure, low: float, high: float, *, row: int, col: int) -> None:
    """A logarithmic axis with whole numbers at 1, 2 and 5 of each power of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    shown = [f"{tick:g}" for tick in ticks]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=shown, row=row, col=col)


def level(figure: go.Figure, y: float | int, *, row: int, col: int) -> None:
    """A thin dotted line across one panel."""
    figure.add_shape(
        type="line", x0=0, x1=1, xref="x domain", y0=y, y1=y, line=DOTTED, row=row, col=col
    )


def upright(figure: go.Figure, x: float | int, *, row: int, col: int, dash: str = "dot") -> None:
    """A thin vertical line through one panel."""
    line = {**DOTTED, "dash": dash}
    figure.add_shape(
        type="line", x0=x, x1=x, y0=0, y1=1, yref="y domain", line=line, row=row, col=col
    )


def panel_per_class(table: pd.DataFrame) -> tuple[go.Figure, list[tuple[int, pd.DataFrame]]]:
    """Panels side by side for the classes of prompts, each with its number and its rows."""
    of_class = list(table.groupby("prompt_class", sort=False))
    drawn = make_subplots(
        rows=1,
        cols=len(of_class),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[f"{label} prompts" for label, _ in of_class],
    )
    return drawn, [(panel, rows) for panel, (_, rows) in enumerate(of_class, start=1)]


EXPLAINS = "explains"
"""The meta of a trace that says something about the values of others."""
LAST = 2000
"""The rank in the legend of what explains marks: after all series."""
BAR = {"symbol": "line-ns", "size": 10, "line": {"width": 1.5, "color": "black"}}
"""The marker that explains error bars in a legend."""
ACROSS = {"symbol": "line-ew", "size": 14, "line": {"width": 1.5, "color": "black"}}
BAND = {"symbol": "square", "size": 12, "color": "rgba(0, 0, 0, 0.15)"}
DARK_BAND = {"symbol": "square", "size": 12, "color": "rgba(0, 0, 0, 0.3)"}
BOX = {"symbol": "square", "size": 12, "color": "white", "line": {"width": 1.5, "color": "black"}}
OPEN = {"symbol": "circle-open", "size": 7, "color": "black"}
CROSS = {"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": "black"}}


def opened(symbol: str, open_: Iterable[bool | np.bool_]) -> list[str]:
    """The symbol of each marker: open where the data do not settle on which side it lies."""
    return [f"{symbol}-open" if unsettled else symbol for unsettled in open_]


def explain(figure: go.Figure, marker: dict[str, Any], text: str) -> None:
    """Say in the legend what a mark means."""
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker=marker,
            name=text,
            showlegend=True,
            legendrank=LAST,
            meta=EXPLAINS,
        )
    )


def explain_level(figure: go.Figure, text: str) -> None:
    """Say in the legend what dotted lines mean."""
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            line=DOTTED,
            name=text,
            showlegend=True,
            legendrank=LAST,
            meta=EXPLAINS,
        )
    )


class Crosses:
    """Crosses over the values whose opening mass is low, with one line of the legend for all."""

    text = f"opening mass below {LOW_MASS:g}"

    def __init__(self) -> None:
        self.explained = False

    def draw(
        self,
        figure: go.Figure,
        x: pd.Series,
        y: pd.Series,
        mass: pd.Series,
        *,
        row: int = 1,
        col: int = 1,
    ) -> None:
        """Cross out in one panel; nothing where no value is crossed out."""
        low = (mass < LOW_MASS).to_numpy()
        if not low.any():
            return
        figure.add_trace(
            go.Scatter(
                x=x[low],
                y=y[low],
                mode="markers",
                marker=CROSS,
                name=self.text,
                legendgroup=self.text,
                showlegend=not self.explained,
                hoverinfo="skip",
                legendrank=LAST,
                meta=EXPLAINS,
            ),
            row=row,
            col=col,
        )
        self.explained = True
