"""The logit lens in print: refusing against complying openings by layer, a column per class."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analyses import style
from analyses.logit_lens.figures import EMBEDDINGS, UNSTEERED, by_way, ways
from analyses.printed import sheet

CAPTION = (
    "Log-odds of refusing against complying openings and the probability of both together at the "
    "last token of the prompt, by layer, with 95 % intervals over prompts. Layer −1: the "
    "embeddings; the last layer is the model's own prediction."
)
SHADE = "0.9"


@sheet.in_print
def figure(table: pd.DataFrame, columns: int = 2) -> Figure:
    """Score above, opening mass below, a curve per angle.

    Args:
        table: from :func:`analyses.logit_lens.measure`.
        columns: of the page, one or two.
    """
    classes = [*dict.fromkeys(table["prompt_class"])]
    drawn = sheet.blank(columns, {1: 3.7, 2: 3.5}[columns])
    panels = drawn.subplots(
        2, len(classes), sharex=True, sharey="row", height_ratios=(1.7, 1), squeeze=False
    )
    angles = ways(table)
    looks = {**style.series(angles), UNSTEERED: style.Look("#000000", "solid", "circle")}
    last = int(table["layer"].max())
    every = max(1, last // 8)
    small = {"markersize": 2.4, "linewidth": 0.9, "markevery": every}
    for pair, label in zip(panels.T, classes, strict=True):
        of_class = table.loc[table["prompt_class"] == label]
        for name, rows in by_way(of_class, angles):
            look, x = looks[name], rows["layer"]
            pair[0].fill_between(
                x, rows["low"], rows["high"], color=look.colour, alpha=sheet.PALE, linewidth=0
            )
            for axes, column in zip(pair, ("refusal_score", "opening_mass"), strict=True):
                sheet.curve(axes, x, rows[column], look, **small)
        for layer in of_class.loc[of_class["steers"] > 0, "layer"].unique():
            for axes in pair:
                axes.axvspan(layer - 0.5, layer + 0.5, color=SHADE, linewidth=0, zorder=0)
        sheet.level(pair[0], 0)
        pair[0].set_title(f"{label} prompts")
        sheet.label_depth(pair[1], ())
        pair[1].locator_params(axis="x", nbins={1: 4, 2: 9}[columns])
        pair[1].set_ylim(-0.04, 1.04)
        pair[1].set_xlim(EMBEDDINGS - 0.5, last + 0.5)
    panels[0, 0].set_ylabel("log-odds of refusing (nats)")
    panels[1, 0].set_ylabel("opening mass")
    entries: list[tuple[Artist, str]] = [
        (sheet.key(looks[name], markersize=2.4, linewidth=0.9), name) for name in angles
    ]
    if not table["low"].isna().all():
        entries.append((sheet.BAND_KEY, "band: 95 % interval over prompts"))
    if (table["steers"] > 0).any():
        entries.append((Patch(facecolor=SHADE, linewidth=0), "shade: steered block"))
    entries.append((sheet.LEVEL_KEY, "0 nats"))
    sheet.legend(drawn, entries)
    return drawn


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The score with its interval by layer, a column per class and angle."""
    rows = []
    for layer, of_layer in table.groupby("layer", sort=True):
        cells: dict[str, object] = {"layer": layer}
        for label in dict.fromkeys(table["prompt_class"]):
            of_class = of_layer.loc[of_layer["prompt_class"] == label]
            for name, here in by_way(of_class, ways(table)):
                ends = here[["refusal_score", "low", "high"]].to_numpy(float)[0]
                known = "{:+.2f} [{:+.2f}, {:+.2f}]" if np.isfinite(ends).all() else "{:+.2f}"
                cells[f"{label}, {name}"] = known.format(*ends)
        rows.append(cells)
    return pd.DataFrame(rows)
