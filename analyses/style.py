"""How all figures look: colours, axes of sites, and the layout."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ss_lens.models.sites import STREAMS, Site

# Okabe–Ito, readable with every kind of colour vision.
CLASS_COLOURS = {"positive": "#D55E00", "negative": "#0072B2"}
SERIES_COLOURS = ("#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#0072B2", "#000000")
NEUTRAL = "#666666"
SELECTED = "rgba(0, 158, 115, 0.14)"
STREAM_COLOURS = dict(zip(STREAMS, SERIES_COLOURS, strict=True))
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
DOTTED = {"color": NEUTRAL, "width": 1, "dash": "dot"}
"""The line at a reference."""
WIDTH = 900
"""Of every figure, in pixels: what a page or a notebook shows without scrolling."""
SUBTITLE_WIDTH = 110
"""Characters of the subtitle that fit in a line."""
_BELOW_AXIS, _LEGEND_ROW = 62, 30


def depth(sites: Sequence[Site]) -> np.ndarray:
    """Horizontal position of each site: its layer plus its place within the block."""
    present = sorted({site.stream for site in sites}, key=STREAMS.index)
    return np.array([site.layer + present.index(site.stream) / len(present) for site in sites])


def series(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each name; no two are alike among the first 42."""
    pairs = cycle((colour, dash) for dash in DASHES for colour in SERIES_COLOURS)
    return dict(zip(dict.fromkeys(names), pairs, strict=False))


def layout(
    figure: go.Figure, title: str, subtitle: str = "", height: int = 480, *, clear: int = 0
) -> go.Figure:
    """Apply the common layout: the title above, the legend below, nothing over the panels.

    Args:
        figure: with its traces and annotations, which decide how much room they get.
        title: in one line.
        subtitle: what was measured and on what; wrapped to the width.
        height: in pixels, without the rows of the legend.
        clear: more pixels to keep free above and below the panels, for labels around a circle.
    """
    lines = textwrap.wrap(subtitle, SUBTITLE_WIDTH)
    text = "<br>".join([title, *(f"<sup>{line}</sup>" for line in lines)])
    rows = _legend_rows(figure)
    texts = [note.text for note in figure.select_annotations({"yref": "paper"})]
    headings = max((1 + text.count("<br>") for text in texts), default=0)
    top = 48 + 22 * len(lines) + 20 * headings + clear
    height += _LEGEND_ROW * rows + 2 * clear
    bottom = _BELOW_AXIS + _LEGEND_ROW * rows + clear
    figure.update_shapes(opacity=1)  # the template makes lines and shades faint
    return figure.update_layout(
        template="simple_white",
        title={
            "text": text,
            **{"x": 0.01, "xanchor": "left"},
            **{"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 24}},
        },
        font={"family": "DejaVu Sans, Arial, sans-serif", "size": 13},
        margin={"l": 70, "r": 30, "t": top, "b": bottom},
        width=WIDTH,
        height=height,
        legend={
            "orientation": "h",
            **{"x": 0, "xanchor": "left", "yanchor": "top"},
            "y": -(_BELOW_AXIS + clear) / (height - top - bottom),
        },
        hovermode="closest",
    )


def _legend_rows(figure: go.Figure) -> int:
    """How many rows the legend takes below the panels, estimated from the names' lengths."""
    traces = cast("Iterable[Any]", figure.select_traces())  # plotly has it untyped
    shown = [trace.name for trace in traces if trace.name and trace.showlegend is not False]
    if len(shown) < 2:
        return 0
    width = 55 + 7.5 * max(map(len, shown))
    return -(-len(shown) // max(1, int((WIDTH - 100) / width)))


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


def symbols(opening_mass: Iterable[float], shape: str = "circle") -> list[str]:
    """Hollow where less than half of the first token's probability is on any opening."""
    return [shape if mass >= 0.5 else f"{shape}-open" for mass in opening_mass]
