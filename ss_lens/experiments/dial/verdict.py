"""What the main job found, in words: what turned, by how much, against which control."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ss_lens.experiments.dial.scan import METHOD, RANDOM, Sense, chosen_angles

_DIRECTION: dict[Sense, int] = {"weakened": -1, "strengthened": 1}


def verdict(scores: pd.DataFrame, dial: pd.DataFrame, choices: pd.DataFrame) -> str:
    """One line for both senses of turning.

    Refusal turned where the 95 % intervals of unsteered and steered test answers do not overlap,
    and the turn counts as the method's where its score on dev moved further than in every random
    plane.

    Args:
        scores: a row per angle, with that at 0° unsteered.
        dial: of :func:`ss_lens.experiments.dial.scan.dial_table`.
        choices: of :func:`ss_lens.experiments.dial.scan.choose_angles`.
    """
    rows = {row["angle_deg"]: row for row in scores.to_dict("records")}
    angles = chosen_angles(choices)
    said = []
    for sense, direction in _DIRECTION.items():
        if sense in angles:
            angle = angles[sense]
            moved = _moved(rows[0.0], rows[angle], direction)
            said.append(
                f"{_opening(sense, moved)} at {angle:g}°: refused "
                f"{_rate(rows[0.0], 'positive')} → {_rate(rows[angle], 'positive')} of harmful, "
                f"{_rate(rows[0.0], 'negative')} → {_rate(rows[angle], 'negative')} of harmless "
                f"prompts, {rows[angle]['collapsed']:.2f} collapsed; "
                f"{_against(dial, angle, direction, moved)}."
            )
        elif tried := int((choices["sense"] == sense).sum()):
            said.append(
                f"No angle {sense} refusal with coherent text: at each of {tried} too many dev "
                "answers collapsed."
            )
        else:
            said.append(f"No turned angle was asked for that could have {sense} refusal.")
    return " ".join(said)


def _moved(before: dict[Any, Any], after: dict[Any, Any], direction: int) -> int:
    """1 where refusal turned as it was to, −1 where it turned the other way, 0 otherwise."""
    if after["refusal_positive_low"] > before["refusal_positive_high"]:
        return direction
    if after["refusal_positive_high"] < before["refusal_positive_low"]:
        return -direction
    return 0


def _opening(sense: str, moved: int) -> str:
    turned = {"weakened": "Refusal turned down", "strengthened": "Refusal turned up"}[sense]
    nothing = {
        "weakened": "Nothing turned refusal down: the lowest score on dev is",
        "strengthened": "Nothing turned refusal up: the highest score on dev is",
    }[sense]
    contrary = "Refusal turned against what its score on dev said"
    return {1: turned, 0: nothing, -1: contrary}[moved]


def _against(dial: pd.DataFrame, angle: float, direction: int, moved: int) -> str:
    """The method's change of score beside that in the random planes."""
    positive = dial.loc[dial["prompt_class"] == "positive"]
    own = positive.loc[positive["way"] == METHOD].set_index("angle_deg")["refusal_score"]
    start = float(own.loc[0.0])
    change = float(own.loc[angle]) - start
    said = f"the score on dev moved by {change:+.1f} nats"
    there = (positive["way"] == RANDOM) & (positive["angle_deg"] == angle)
    drawn = positive.loc[there, "refusal_score"] - start
    if drawn.empty:
        return f"{said}, and no random plane was measured there"
    furthest = float((drawn * direction).max())
    alone = change * direction > furthest
    said += (
        f", in {len(drawn)} random planes of equal energy at the same sites by {drawn.min():+.1f} "
        f"to {drawn.max():+.1f}"
    )
    if alone:
        return said
    if moved:
        return f"{said}: a random plane does as well, so the turn is not the method's plane's"
    return f"{said}: a random plane moves it as far"


def _rate(row: dict[Any, Any], label: str) -> str:
    low, high = row[f"refusal_{label}_low"], row[f"refusal_{label}_high"]
    return f"{row[f'refusal_{label}']:.2f} [{low:.2f}, {high:.2f}]"
