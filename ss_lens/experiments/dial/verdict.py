"""What the main job found, in words: what turned, by how much, against which control."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ss_lens.experiments.dial.scan import Sense, chosen_angles
from ss_lens.experiments.dial.ways import METHOD, RANDOM, SAME

BROKEN = 0.5
"""An opening mass below this share of the unsteered one: answers open like neither a refusal nor an
answer, the text breaks, and the score says little."""
_DIRECTION: dict[Sense, int] = {"weakened": -1, "strengthened": 1}


def verdict(
    scores: pd.DataFrame,
    dial: pd.DataFrame,
    choices: pd.DataFrame,
    asked: pd.DataFrame | None = None,
) -> str:
    """One line for both senses of turning.

    Refusal turned where the 95 % intervals of unsteered and steered test answers do not overlap,
    and the turn counts as the plane's own where its score on dev moved further than in all uniform
    random planes, and further than in all those of equal energy that leave the text whole. A plane
    breaks it where its opening mass is below :data:`BROKEN` of the unsteered one; where the
    method's is too, no plane is discounted for that. Asking the model does as well where the
    system prompt that dev chose moves the score on dev as far, and leaves the text whole.

    Args:
        scores: a row per angle, with that at 0° unsteered.
        dial: of :func:`ss_lens.experiments.dial.scan.dial_table`.
        choices: of :func:`ss_lens.experiments.dial.scan.choose_angles`.
        asked: of :func:`ss_lens.experiments.dial.asking.scan_asking`; ``None`` says nothing of it.
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
                f"{_against(dial, angle, direction, moved)}{_surely(choices, sense)}"
                f"{'' if asked is None else _beside_asking(asked, dial, angle, sense)}."
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
    """The method's change of score beside that in both kinds of random planes, on its prompts."""
    positive = dial.loc[dial["prompt_class"] == "positive"]
    at_angle = positive.loc[positive["angle_deg"] == angle].set_index("way")
    drawn = [at_angle.loc[at_angle.index == way] for way in RANDOM]
    measured = not any(rows.empty for rows in drawn)
    own = positive.loc[positive["way"] == (SAME if measured else METHOD)].set_index("angle_deg")
    start, there = own.loc[0.0], own.loc[angle]
    change = float(there["refusal_score"] - start["refusal_score"])
    said = (
        f"the score on {there['n']} dev prompts moved by {change:+.1f} nats (opening mass "
        f"{start['opening_mass']:.2f} → {there['opening_mass']:.2f})"
    )
    if not measured:
        return f"{said}, and no random plane was measured there"
    names = ("uniform random planes at the same sites", "of equal energy")
    for rows, name in zip(drawn, names, strict=True):
        changes = rows["refusal_score"] - start["refusal_score"]
        said += (
            f", in {len(rows)} {name} by {changes.min():+.1f} to {changes.max():+.1f} (opening "
            f"mass {rows['opening_mass'].min():.2f} to {rows['opening_mass'].max():.2f})"
        )
    uniform, matched = (
        rows.loc[(rows["refusal_score"] - start["refusal_score"]) * direction >= change * direction]
        for rows in drawn
    )
    limit = BROKEN * float(start["opening_mass"])
    whole = matched.loc[matched["opening_mass"] >= limit]
    if there["opening_mass"] < limit:  # then no draw is worse for the same
        whole = matched
    does = "does as well, so the turn is not the plane's own" if moved == 1 else "moves it as far"
    if not uniform.empty:
        return f"{said}: a uniform random plane {does}"
    if not whole.empty:
        mass = whole["opening_mass"].max()
        return f"{said}: a random plane of equal energy {does} (its opening mass is {mass:.2f})"
    own_turn = ", so the turn is the plane's own" if moved == 1 else ""
    if matched.empty:
        return f"{said}: no random plane moves it as far{own_turn}"
    return (
        f"{said}: only planes of equal energy move it as far ({len(matched)}), and there the text "
        f"breaks{own_turn}"
    )


def _surely(choices: pd.DataFrame, sense: Sense) -> str:
    """How often dev would choose the same angle; nothing in runs of earlier versions."""
    if "share" not in choices:
        return ""
    share = choices.loc[choices["chosen"] & (choices["sense"] == sense), "share"].iloc[0]
    return f"; dev chooses this angle in {share:.0%} of the resamples of its prompts"


def _beside_asking(asked: pd.DataFrame, dial: pd.DataFrame, angle: float, sense: Sense) -> str:
    """What a system prompt does to the score of dev, beside the turn on the same prompts."""
    if asked.empty:
        return "; the model takes no system prompt, so asking it instead was not measured"
    direction = _DIRECTION[sense]
    of_method = (dial["way"] == METHOD) & (dial["prompt_class"] == "positive")
    own = dial.loc[of_method].set_index("angle_deg")
    start, there = own.loc[0.0], own.loc[angle]
    chosen = asked.loc[asked["chosen"] & (asked["sense"] == sense)].set_index("prompt_class")
    change = float(chosen.loc["positive", "refusal_score"] - start["refusal_score"])
    turned = float(there["refusal_score"] - start["refusal_score"])
    mass = float(chosen.loc["positive", "opening_mass"])
    said = (
        f"; asked for it in a system prompt, unsteered, the score on {there['n']} dev prompts "
        f"moves by {change:+.1f} (opening mass {mass:.2f}), by the turn {turned:+.1f}: "
    )
    if change * direction < turned * direction:
        return f"{said}asking does less"
    if mass < BROKEN * float(start["opening_mass"]):
        return f"{said}asking moves it as far, and there the text breaks"
    return f"{said}asking the model does as well"


def _rate(row: dict[Any, Any], label: str) -> str:
    low, high = row[f"refusal_{label}_low"], row[f"refusal_{label}_high"]
    return f"{row[f'refusal_{label}']:.2f} [{low:.2f}, {high:.2f}]"
