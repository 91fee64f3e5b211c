"""How all figures look: colours, axes of sites, and the layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ss_lens.models.sites import STREAMS, Site

# Okabe–Ito, readable with every kind of colour vision.
CLASS_COLOURS = {"positive": "#D55E00", "negative": "#0072B2"}
SERIES_COLOURS = ("#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#0072B2", "#000000")
NEUTRAL = "#666666"
SELECTED = "rgba(0, 158, 115, 0.14)"
DASHES = ("solid", "dash", "dot", "dashdot")


def depth(sites: Sequence[Site]) -> np.ndarray:
    """Horizontal position of each site: its layer plus its place within the block."""
    present = sorted({site.stream for site in sites}, key=STREAMS.index)
    return np.array([site.layer + present.index(site.stream) / len(present) for site in sites])


def layout(figure: go.Figure, title: str, subtitle: str = "", height: int = 480) -> go.Figure:
    """Apply the common layout; ``subtitle`` says what was measured and on what."""
    text = f"{title}<br><sup>{subtitle}</sup>" if subtitle else title
    return figure.update_layout(
        template="simple_white",
        title={"text": text, "x": 0.01, "xanchor": "left"},
        font={"family": "DejaVu Sans, Arial, sans-serif", "size": 13},
        margin={"l": 70, "r": 30, "t": 80, "b": 60},
        width=900,
        height=height,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1.0, "xanchor": "right"},
        hovermode="closest",
    )


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str) -> go.Scatter:
    """A translucent band between two curves."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
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


def reference_line(figure: go.Figure, y: float | int, panel: int) -> None:
    """A thin dotted horizontal line in one panel of :func:`two_panels`."""
    line = {"color": NEUTRAL, "width": 1, "dash": "dot"}
    figure.add_shape(
        type="line", x0=0, x1=1, xref="x domain", y0=y, y1=y, line=line, row=panel, col=1
    )
