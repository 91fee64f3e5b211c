"""The logit lens in print, in words: the likeliest token of each layer, shaded by the score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from analyses import style
from analyses.logit_lens.figures import names_of, ways
from analyses.printed import sheet
from analyses.printed.letters import LACKING_TOLD, drawable, in_ascii, on_shade
from analyses.printed.tables import negative

CAPTION = (
    "The token of the highest mean probability at the last token of the prompt, by layer. Shade: "
    f"log-odds of refusing against complying openings. {LACKING_TOLD}"
)
MOST = 40
"""Layers that are shown; of more, so many evenly up to the last."""
LONGEST = {1: 8, 2: 12}


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """A panel per class, a column per angle, the last layer above.

    Args:
        table: from :func:`analyses.logit_lens.measure`.
        columns: of the page, one or two.
    """
    classes, angles = [*dict.fromkeys(table["prompt_class"])], ways(table)
    layers = shown_layers(sorted(map(int, table["layer"].unique())))
    later = table["layer"] >= layers[len(layers) // 2]
    limit = float(table.loc[later, "refusal_score"].abs().max()) or 1.0
    shades = LinearSegmentedColormap.from_list("diverging", style.DIVERGING)
    norm = Normalize(-limit, limit)
    fits = columns == 2 or len(angles) * len(classes) <= 4
    grid = (1, len(classes)) if fits else (len(classes), 1)
    rows = 1 if fits else len(classes)
    drawn = sheet.blank(columns, min(9.4, 0.9 + rows * (0.35 + 0.118 * len(layers))))
    panels = drawn.subplots(*grid, squeeze=False)
    named = table.assign(way=names_of(table))
    for axes, label in zip(panels.flat, classes, strict=True):
        of_class = named.loc[named["prompt_class"] == label]
        score, top = (
            of_class.pivot(index="layer", columns="way", values=column).loc[layers, angles]
            for column in ("refusal_score", "top_1")
        )
        _cells(axes, score.to_numpy(float), top.to_numpy(), shades, norm, LONGEST[columns])
        axes.set_title(f"{label} prompts")
        axes.set_xticks(range(len(angles)), angles)
        axes.set_yticks(range(len(layers)), [negative(str(layer)) for layer in layers])
        axes.tick_params(length=0)
        axes.set_ylabel("layer" if axes in panels[:, 0] else "")
    sheet.colour_bar(drawn, norm, shades, [*panels.flat], "log-odds of refusing openings (nats)")
    return drawn


def shown_layers(layers: list[int]) -> list[int]:
    """All, or :data:`MOST` of them at even steps down from the last.

    >>> shown_layers([*range(-1, 80)])[:3]
    [0, 3, 6]
    """
    step = -(-len(layers) // MOST)
    return layers[::-1][::step][::-1]


def _cells(
    axes: Axes,
    score: np.ndarray,
    tokens: np.ndarray,
    shades: Colormap,
    norm: Normalize,
    longest: int,
) -> None:
    axes.imshow(
        score, cmap=shades, norm=norm, aspect="auto", origin="lower", interpolation="nearest"
    )
    for (row, column), token in np.ndenumerate(tokens):
        colour = on_shade(float(norm(score[row, column])))
        text = drawable(str(token), longest)
        axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The likeliest token of each layer with its mean probability, a column per class and angle."""
    named = table.assign(way=names_of(table))
    named["column"] = named["prompt_class"] + ", " + named["way"]
    named["text"] = [
        f"{in_ascii(drawable(str(token), LONGEST[2]))} ({p:.2f})"
        for token, p in zip(named["top_1"], named["p_1"], strict=True)
    ]
    wide = named.pivot(index="layer", columns="column", values="text")
    return wide[[*dict.fromkeys(named["column"])]].reset_index().rename_axis(columns=None)
