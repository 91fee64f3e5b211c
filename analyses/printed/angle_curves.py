"""The score against the angle in print, a small panel per variant."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analyses import null_bands, style
from analyses.printed import sheet
from analyses.spoken import REFUSAL, Spoken

CAPTION = (
    "Mean score against the angle on dev prompts, a panel per variant and a curve per draw. A "
    "variant that is another at one angle has no panel. The circle closes: 360° repeats 0°."
)
PER_ROW = {1: 2, 2: 4}
GHOST = {"color": "0.6", "linewidth": 2.2}


@sheet.in_print
def figure(
    means: pd.DataFrame,
    reference: str,
    bands: pd.DataFrame | None = None,
    spoken: Spoken = REFUSAL,
    columns: int = 2,
) -> Figure:
    """A panel per variant, with the full method on positive prompts behind each.

    Args:
        means: ``variant``, ``prompt_class``, ``draw``, ``angle_deg``, the score,
            ``opening_mass``: one row per variant, class, draw and angle.
        reference: the variant that stands, grey, behind the others.
        bands: of random controls on harmful prompts, from :func:`analyses.null_bands.bands`.
        spoken: what the score and the classes are called.
        columns: of the page, one or two.
    """
    score = spoken.score
    variants = [*dict.fromkeys(means["variant"])]
    across = min(PER_ROW[columns], len(variants))
    down = math.ceil(len(variants) / across)
    drawn = sheet.blank(columns, 0.75 + 1.35 * down)
    panels = drawn.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    behind = means.query("variant == @reference and prompt_class == 'positive'")
    crossed = False
    kinds = [] if bands is None else [(name, b) for name, b in bands.groupby("null", sort=False)]
    for axes, variant in zip(panels.flat, variants, strict=False):
        for (_, band), colour in zip(kinds, null_bands.COLOURS, strict=False):
            corners = null_bands.around(band)
            ends = corners["refusal_score_low"], corners["refusal_score_high"]
            axes.fill_between(corners["angle_deg"], *ends, color=colour, alpha=0.3, linewidth=0)
        for _, rows in behind.groupby("draw"):
            ghost = _closed(rows)
            axes.plot(ghost["angle_deg"], ghost[score], **GHOST)
        crossed |= _curves(axes, means.loc[means["variant"] == variant], score)
        sheet.level(axes, 0)
        axes.set_title(textwrap.fill(variant, 26))
        axes.set_xticks((0, 180, 360))
        axes.set_xlim(-12, 372)
    for axes in panels.flat[len(variants) :]:
        axes.remove()
    below = [(i, i + across >= len(variants)) for i in range(len(variants))]
    for i, is_lowest in below:
        axes = panels.flat[i]
        if is_lowest:
            axes.tick_params(axis="x", labelbottom=True)
            axes.set_xlabel("θ (degrees)")
        if i % across == 0:
            axes.set_ylabel(f"score{spoken.unit}")
    entries: list[tuple[Artist, str]] = [
        (sheet.key(style.CLASS_LOOKS[label]), getattr(spoken, str(label)))
        for label in dict.fromkeys(means["prompt_class"])
    ]
    if not behind.empty:
        entries.append((Line2D([], [], **GHOST), f"{reference}, {spoken.positive}"))
    for (name, band), colour in zip(kinds, null_bands.COLOURS, strict=False):
        key = Patch(facecolor=colour, alpha=0.3, linewidth=0)
        entries.append((key, null_bands.told(str(name), int(band["draws"].iloc[0]))))
    if crossed:
        entries.append((sheet.CROSS_KEY, sheet.CROSS_TEXT))
    entries.append((sheet.LEVEL_KEY, "0 nats" if spoken.unit else "0"))
    sheet.legend(drawn, entries)
    return drawn


def _curves(axes: Axes, rows: pd.DataFrame, score: str) -> bool:
    """A curve per class and draw; whether any value is crossed out."""
    crossed = False
    for label, look in style.CLASS_LOOKS.items():
        for _, of_draw in rows.loc[rows["prompt_class"] == label].groupby("draw"):
            of_draw = _closed(of_draw)
            x, y = of_draw["angle_deg"], of_draw[score]
            every = max(1, len(of_draw) // 8)
            sheet.curve(axes, x, y, look, markersize=2.4, markevery=every, linewidth=0.8)
            crossed |= sheet.crosses(axes, x, y, of_draw["opening_mass"])
    return crossed


def _closed(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.sort_values("angle_deg")
    return pd.concat([rows, rows.loc[rows["angle_deg"] == 0].assign(angle_deg=360.0)])


def brief(
    means: pd.DataFrame,
    reference: str,
    bands: pd.DataFrame | None = None,
    spoken: Spoken = REFUSAL,
) -> pd.DataFrame:
    """Per variant and class, the least score at any angle and where: of the lowest draw.

    Of random controls it is the lower end of their band.
    """
    rows, score, unit = [], spoken.score, spoken.unit
    for _, group in means.groupby(["variant", "prompt_class"], sort=False):
        variant, label = str(group["variant"].iloc[0]), str(group["prompt_class"].iloc[0])
        known = group.dropna(subset=[score])
        if known.empty:
            continue
        least = known.loc[known[score].idxmin()]
        rows.append(
            {
                "variant": f"{variant} (the full method)" if variant == reference else variant,
                "prompts": getattr(spoken, label),
                "draws": known["draw"].nunique(),
                f"least score{unit}": f"{least[score]:+.2f}",
                "at θ (°)": f"{least['angle_deg']:g}",
                **({"opening mass there": f"{least['opening_mass']:.2f}"} if unit else {}),
                f"most score{unit}": f"{np.nanmax(known[score]):+.2f}",
            }
        )
    for null, band in [] if bands is None else bands.groupby("null", sort=False):
        least = band.loc[band["refusal_score_low"].idxmin()]
        rows.append(
            {
                "variant": f"{null} ({null_bands.SHARE})",
                "prompts": spoken.positive,
                "draws": int(least["draws"]),
                "least score (nats)": f"{least['refusal_score_low']:+.2f}",
                "at θ (°)": f"{least['angle_deg']:g}",
                "opening mass there": f"{least['opening_mass']:.2f}",
                "most score (nats)": f"{band['refusal_score_high'].max():+.2f}",
            }
        )
    return pd.DataFrame(rows)
