"""What every figure for print must be: no text small, cut off, over another or under the legend."""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text


def texts(figure: Figure) -> list[Text]:
    """All text that is drawn; ticks outside of their axes are not."""
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in {*axis.get_major_ticks(), *axis.get_minor_ticks()} - {*axis._update_ticks()}  # type: ignore[attr-defined]
        for label in (tick.label1, tick.label2)
    }
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [t for t in found if t.get_visible() and t.get_text() and id(t) not in hidden]


def check_texts(figure: Figure, columns: int) -> None:
    """Fail where a text is under 6 points, outside of the figure, or over another."""
    assert figure.get_figwidth() == {1: 3.25, 2: 6.75}[columns]
    assert figure.get_figheight() <= 9.5
    figure.canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    assert len(boxes) > 5
    assert min(float(text.get_fontsize()) for text in texts(figure)) >= 6
    assert not [t.get_text() for t in texts(figure) if "$" in t.get_text()]  # exponents are small
    for text, box in boxes:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= width + 0.5, text
        assert box.y1 <= height + 0.5, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-0.5).overlaps(b.padded(-0.5)), (one, other)


def check_legend(figure: Figure) -> None:
    """Fail where the legend lies over a panel."""
    (legend,) = figure.legends
    below = legend.get_window_extent()
    for axes in figure.axes:
        panel = axes.get_tightbbox()
        assert panel is not None
        assert not below.overlaps(panel.padded(-1))


def legend_of(figure: Figure) -> tuple[Legend, list[str]]:
    (legend,) = figure.legends
    return legend, [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def mark(line: Line2D) -> tuple[Any, ...]:
    """How a line looks in grey: its dash, marker and width."""
    dashes = line._unscaled_dash_pattern  # type: ignore[attr-defined]
    hollow = to_rgb(line.get_markerfacecolor()) == (1, 1, 1)
    drawn = line.get_linestyle() != "None"
    return dashes if drawn else None, line.get_marker(), hollow, drawn and line.get_linewidth()
