"""How the ways of steering on the dial look, and their rows, for the screen and for print."""

from __future__ import annotations

import pandas as pd

from analyses.style import CLASS_COLOURS, NEUTRAL, SERIES_COLOURS, Look, series
from ss_lens.experiments.dial.ways import (
    ALL_SITES,
    HEADINGS,
    MATCHED,
    METHOD,
    SAME,
    UNIFORM,
)

LONE = {
    UNIFORM: Look(NEUTRAL, "solid", "cross"),
    MATCHED: Look(CLASS_COLOURS["negative"], "solid", "star"),
    SAME: Look(SERIES_COLOURS[0], "solid", "triangle-left"),
}
"""What is measured at a few angles only: markers without a line."""

BESIDE = {UNIFORM: -5, MATCHED: 5}
"""Degrees by which random planes stand beside their angle, so that nothing hides them."""


SCORES = {
    "refusal_score": "refusal score (nats)",
    "behaviour_score": "score (nats)",
    "text_score": "score of answers",
}
"""What a dial may be of, and how its axis is called."""


def panels_of(table: pd.DataFrame) -> tuple[tuple[str, str], tuple[str, str]]:
    """The columns that are drawn above each other, and their titles: a score, the opening mass."""
    score = next((name for name in SCORES if name in table), "refused")
    return (score, SCORES.get(score, score)), ("opening_mass", "opening mass")


def named(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The ways and classes of a dial as they are called; no class is harmful but refusal's."""
    if "refusal_score" in table:
        return {**HEADINGS}
    return {key: text.replace("harmless", "negative") for key, text in HEADINGS.items()}


def looks() -> dict[tuple[str, str], Look]:
    """The look of each way and class."""
    found = series(HEADINGS.values())
    return {(way, label): LONE.get(way, found[name]) for (way, label), name in HEADINGS.items()}


def closed(table: pd.DataFrame, way: str, label: str) -> pd.DataFrame:
    """The rows of a way in the order of angles; a curve closes its circle at 360°.

    All rotations by an angle start from the unsteered model, which is measured once.
    """
    here = table.loc[(table["way"] == way) & (table["prompt_class"] == label)]
    if way == ALL_SITES and len(here):
        is_start = (table["way"] == METHOD) & (table["angle_deg"] == 0)
        here = pd.concat([table.loc[is_start & (table["prompt_class"] == label)], here])
    here = here.sort_values("angle_deg")
    if way in LONE:
        return here
    return pd.concat([here, here.loc[here["angle_deg"] == 0].assign(angle_deg=360.0)])
