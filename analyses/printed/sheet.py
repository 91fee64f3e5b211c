"""The sheet that a printed figure is drawn on: its width and type, its legend, and its file."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from analyses import style
from analyses.style import Look
from ss_lens.models.sites import Site

Given = ParamSpec("Given")
WIDTHS = {1: 3.25, 2: 6.75}
"""Inches of one and of two columns."""
SMALLEST = 6.0
"""Points of the smallest text at these widths."""
PRINT = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same on every machine
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.2,
    "legend.labelspacing": 0.35,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.2,
    "hatch.linewidth": 0.4,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # whole TrueType outlines, which publishers ask for
    "svg.fonttype": "path",  # no font is asked of the reader's machine
    "svg.hashsalt": "ss_lens",
}
GREY, PALE = "0.45", 0.18
"""Of dotted lines; the opacity of bands."""
MARKERS = {
    **{"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v"},
    **{"cross": "P", "star": "*", "triangle-left": "<"},
}
LINES: Mapping[str, Any] = {
    "solid": "-",
    "dash": (0, (4, 1.6)),
    "dot": (0, (1, 1.4)),
    "dashdot": (0, (4, 1.4, 1, 1.4)),
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 1.6, 1, 1.6)),
}


def _defaults() -> AbstractContextManager[None]:
    """Matplotlib's own defaults with those of print, whatever the user has set."""
    return matplotlib.style.context(["default", PRINT])


def in_print(draw: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """Have a function draw with the defaults of print."""

    @wraps(draw)
    def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Figure:
        with _defaults():
            return draw(*args, **kwargs)

    return drawn


def blank(columns: int, height: float) -> Figure:
    """An empty figure of a width in columns and a height in inches."""
    figure = Figure(figsize=(WIDTHS[columns], height), layout="constrained")
    FigureCanvasAgg(figure)  # measures text, whatever the file is to be
    return figure


def line(look: Look, **changes: Any) -> dict[str, Any]:
    """The keywords of a curve; markers are filled with its colour unless told."""
    marker = MARKERS[look.symbol]
    return {
        "color": look.colour,
        "linestyle": LINES[look.dash],
        "marker": marker,
        "markersize": 4.6 if marker == "*" else 3.6 if marker == "P" else 3.0,
        "markeredgewidth": 0.7,
        **changes,
    }


def curve(axes: Axes, x: Any, y: Any, look: Look, *, open_: Any = None, **changes: Any) -> None:
    """A curve whose markers are open where ``open_`` says so."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    axes.plot(x, y, **line(look, **changes))
    if open_ is not None:
        mask = np.asarray(open_, dtype=bool)
        hollow = {**changes, "linestyle": "none", "markerfacecolor": "white"}
        axes.plot(x[mask], y[mask], **line(look, **hollow))


def bars(axes: Axes, x: Any, low: Any, high: Any, colour: str) -> None:
    """Upright lines from ``low`` to ``high``; none where a bound is unknown."""
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    known = np.isfinite(low) & np.isfinite(high)
    axes.vlines(np.asarray(x)[known], low[known], high[known], color=colour, linewidth=0.8)


def crosses(axes: Axes, x: Any, y: Any, mass: Any) -> bool:
    """Cross out the values whose opening mass is low; whether there are any."""
    low = np.asarray(mass, dtype=float) < style.LOW_MASS
    axes.plot(np.asarray(x)[low], np.asarray(y)[low], **CROSS, zorder=4)
    return bool(low.any())


CROSS: Mapping[str, Any] = {
    **{"linestyle": "none", "marker": "x", "color": "black"},
    **{"markersize": 4.2, "markeredgewidth": 0.7},
}


def level(axes: Axes, y: float | int) -> None:
    """A thin dotted line across the panel."""
    axes.axhline(y, color=GREY, linestyle=LINES["dot"], linewidth=0.8, zorder=0.5)


def key(look: Look, **changes: Any) -> Line2D:
    """What the legend shows for a series."""
    return Line2D([], [], **line(look, **changes))


OPEN: Mapping[str, Any] = {
    **{"linestyle": "none", "marker": "o", "markersize": 3.4, "markeredgewidth": 0.7},
    **{"color": "black", "markerfacecolor": "white"},
}
OPEN_KEY = Line2D([], [], **OPEN)
CROSS_KEY = Line2D([], [], **CROSS)
LEVEL_KEY = Line2D([], [], color=GREY, linestyle=LINES["dot"], linewidth=0.8)
BAR_KEY = Line2D(
    [], [], color="black", linestyle="none", marker="|", markersize=6, markeredgewidth=0.8
)
ACROSS_KEY = Line2D([], [], color="black", linewidth=0.9)
BAND_KEY = Patch(facecolor="black", alpha=PALE, linewidth=0)
CROSS_TEXT = f"opening mass below {style.LOW_MASS:g}"


def legend(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    """Put the legend below all panels, in as many columns as fit into the width."""
    room = figure.get_figwidth() * 72 - 6
    for columns in range(min(len(entries), 6), 0, -1):
        for characters in (80, 60, 45, 35) if columns == 1 else (80,):
            texts = [textwrap.fill(text, characters) for _, text in entries]
            shown = figure.legend(
                [artist for artist, _ in entries],
                texts,
                loc="outside lower center",
                ncols=columns,
            )
            if shown.get_window_extent().width * 72 / figure.dpi <= room:
                return
            shown.remove()
    raise AssertionError("no legend fits")


def colour_bar(
    figure: Figure, norm: Normalize, shades: Colormap, panels: Sequence[Axes], label: str
) -> None:
    """What a colour stands for, below all panels that use it."""
    bar = figure.colorbar(
        ScalarMappable(norm, shades),
        ax=panels,
        location="bottom",
        label=label,
        shrink=0.6,
        aspect=40,
        pad=0.01,
    )
    bar.ax.locator_params(nbins=5)


def save(figure: Figure, path: Path, suffix: str, title: str) -> None:
    """Write the figure as ``pdf``, ``svg`` or ``png``; the same bytes whenever it is done."""
    unnamed = {
        "pdf": {"Title": title, "Creator": None, "Producer": None, "CreationDate": None},
        "svg": {"Title": title, "Creator": None, "Date": None},
        "png": {"Title": title, "Software": None},
    }
    with _defaults():
        figure.savefig(path, format=suffix, metadata=unnamed[suffix])


def label_depth(axes: Axes, sites: Sequence[Site]) -> None:
    """Number the layers along the axis on which sites stand by depth."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(style.depth_title(sites))


def log_scale(axes: Axes) -> None:
    """A logarithmic axis with plain numbers: powers of ten have exponents that are too small."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def spans(mask: pd.Series) -> list[tuple[int, int]]:
    """First and last index of each run of true values."""
    flags = np.concatenate([[0], mask.to_numpy(dtype=int), [0]])
    edges = np.flatnonzero(np.diff(flags))
    return [
        (int(first), int(last) - 1) for first, last in zip(edges[::2], edges[1::2], strict=True)
    ]
