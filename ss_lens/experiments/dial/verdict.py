"""What the main job found, in words: what turned, by how much, against which control."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ss_lens.behaviours.measures import REFUSAL, Measures, PromptClass, Sense
from ss_lens.experiments.dial.scan import chosen_angles
from ss_lens.experiments.dial.ways import METHOD, RANDOM, SAME

BROKEN = 0.5
"""An opening mass below this share of the unsteered one: answers open like neither a refusal nor an
answer, the text breaks, and the score says little."""
ALIKE = 0.5
"""Nats of the mean score on so few prompts that tell asking and turning apart; without an opening
mass the score is a share or a number of the user's, and a tenth of the turn does."""
_DIRECTION: dict[Sense, int] = {"weakened": -1, "strengthened": 1}


def verdict(
    scores: pd.DataFrame,
    dial: pd.DataFrame,
    choices: pd.DataFrame,
    asked: pd.DataFrame | None = None,
    measures: Measures = REFUSAL,
) -> str:
    """One line for both senses of turning.

    A behaviour turned where the 95 % intervals of unsteered and steered test answers do not
    overlap, and the turn counts as the plane's own where its score on dev moved further than in all
    uniform random planes, and further than in all those of equal energy that leave the text whole.
    A plane breaks it where its opening mass is below :data:`BROKEN` of the unsteered one; where the
    method's is too, or there is none, no plane is discounted for that. Asking the model does as
    well where the system prompt that dev chose moves the score on dev as far, and leaves the text
    whole.

    Args:
        scores: a row per angle, with that at 0° unsteered.
        dial: of :func:`ss_lens.experiments.dial.scan.dial_table`.
        choices: of :func:`ss_lens.experiments.dial.scan.choose_angles`.
        asked: of :func:`ss_lens.experiments.dial.asking.scan_asking`; ``None`` says nothing of it.
        measures: of the behaviour.
    """
    rows = {row["angle_deg"]: row for row in scores.to_dict("records")}
    angles, name = chosen_angles(choices), measures.behaviour
    said = []
    for sense, direction in _DIRECTION.items():
        if sense in angles:
            angle = angles[sense]
            stem, label = measures.rate, measures.class_of(sense)
            moved = _moved(rows[0.0], rows[angle], f"{stem}_{label}", direction)
            rates = [
                f"{_rate(rows[0.0], f'{stem}_{one}')} → {_rate(rows[angle], f'{stem}_{one}')} of "
                f"{word}"
                for one, word in measures.words.items()
            ]
            said.append(
                f"{_opening(sense, moved, name)} at {angle:g}°: {measures.shown} "
                f"{', '.join(rates)} prompts, {rows[angle]['collapsed']:.2f} collapsed; "
                f"{_against(dial, angle, direction, moved, measures, label)}"
                f"{_surely(choices, sense)}"
                f"{'' if asked is None else _beside_asking(asked, dial, angle, sense, measures)}."
            )
        elif tried := int((choices["sense"] == sense).sum()):
            which = "the only one that was tried" if tried == 1 else f"each of {tried}"
            said.append(
                f"No angle {sense} {name} with coherent text: at {which} too many dev answers "
                "collapsed."
            )
        else:
            said.append(f"No turned angle was asked for that could have {sense} {name}.")
    return " ".join(said)


def _moved(before: dict[Any, Any], after: dict[Any, Any], rate: str, direction: int) -> int:
    """1 where the behaviour turned as it was to, −1 where it turned the other way, 0 otherwise."""
    if after[f"{rate}_low"] > before[f"{rate}_high"]:
        return direction
    if after[f"{rate}_high"] < before[f"{rate}_low"]:
        return -direction
    return 0


def _opening(sense: str, moved: int, name: str) -> str:
    named = f"{name[:1].upper()}{name[1:]}"
    turned = {"weakened": f"{named} turned down", "strengthened": f"{named} turned up"}[sense]
    nothing = {
        "weakened": f"Nothing turned {name} down: the lowest score on dev is",
        "strengthened": f"Nothing turned {name} up: the highest score on dev is",
    }[sense]
    contrary = f"{named} turned against what its score on dev said"
    return {1: turned, 0: nothing, -1: contrary}[moved]


def _against(
    dial: pd.DataFrame,
    angle: float,
    direction: int,
    moved: int,
    measures: Measures,
    label: PromptClass,
) -> str:
    """The method's change of score beside that in both kinds of random planes, on its prompts."""
    score, has_mass = measures.score, measures.mass is not None
    positive = dial.loc[dial["prompt_class"] == label]
    at_angle = positive.loc[positive["angle_deg"] == angle].set_index("way")
    drawn = [at_angle.loc[at_angle.index == way] for way in RANDOM]
    measured = not any(rows.empty for rows in drawn)
    own = positive.loc[positive["way"] == (SAME if measured else METHOD)].set_index("angle_deg")
    start, there = own.loc[0.0], own.loc[angle]
    change = float(there[score] - start[score])
    by = f"{change:+.1f} nats" if has_mass else f"{change:+.2f}"
    said = f"the score on {_counted(int(there['n']), 'dev prompt')} moved by {by}"
    if has_mass:
        said += f" (opening mass {start['opening_mass']:.2f} → {there['opening_mass']:.2f})"
    if not measured:
        return f"{said}, and no random plane was measured there"
    uniform, matched = drawn
    planes = f"{_counted(len(uniform), 'uniform random plane')} at the same sites"
    for rows, where in ((uniform, planes), (matched, f"{len(matched)} of equal energy")):
        changes = rows[score] - start[score]
        said += f", in {where} by {_range(changes, '+.1f' if has_mass else '+.2f')}"
        if has_mass:
            said += f" (opening mass {_range(rows['opening_mass'], '.2f')})"
    uniform, matched = (
        rows.loc[(rows[score] - start[score]) * direction >= change * direction] for rows in drawn
    )
    limit = BROKEN * float(start["opening_mass"])
    whole = matched.loc[matched["opening_mass"] >= limit]
    if not has_mass or there["opening_mass"] < limit:  # then no draw is worse for the same
        whole = matched
    does = "does as well, so the turn is not the plane's own" if moved == 1 else "moves it as far"
    if not uniform.empty:
        return f"{said}: a uniform random plane {does}"
    if not whole.empty:
        mass = f" (its opening mass is {whole['opening_mass'].max():.2f})" if has_mass else ""
        return f"{said}: a random plane of equal energy {does}{mass}"
    own_turn = ", so the turn is the plane's own" if moved == 1 else ""
    if matched.empty:
        return f"{said}: no random plane moves it as far{own_turn}"
    few = f"only planes of equal energy move it as far ({len(matched)})"
    if len(matched) == 1:
        few = "only one plane of equal energy moves it as far"
    return f"{said}: {few}, and there the text breaks{own_turn}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _range(values: pd.Series, digits: str) -> str:
    """From the least to the most; a single value alone."""
    ends = [f"{value:{digits}}" for value in (values.min(), values.max())]
    return ends[0] if len(values) == 1 else " to ".join(ends)


def _surely(choices: pd.DataFrame, sense: Sense) -> str:
    """How often dev would choose the same angle; nothing in runs of earlier versions."""
    if "share" not in choices:
        return ""
    share = choices.loc[choices["chosen"] & (choices["sense"] == sense), "share"].iloc[0]
    return f"; dev chooses this angle in {share:.0%} of the resamples of its prompts"


def _beside_asking(
    asked: pd.DataFrame, dial: pd.DataFrame, angle: float, sense: Sense, measures: Measures
) -> str:
    """What a system prompt does to the score of dev, beside the turn on the same prompts."""
    if asked.empty:
        return "; the model takes no system prompt, so asking it instead was not measured"
    direction, label, score = _DIRECTION[sense], measures.class_of(sense), measures.score
    of_method = (dial["way"] == METHOD) & (dial["prompt_class"] == label)
    own = dial.loc[of_method].set_index("angle_deg")
    start, there = own.loc[0.0], own.loc[angle]
    chosen = asked.loc[asked["chosen"] & (asked["sense"] == sense)].set_index("prompt_class")
    if chosen.empty:
        return "; no system prompt that asks for it was given, so asking was not measured"
    change = float(chosen.loc[label, score] - start[score])
    turned = float(there[score] - start[score])
    mass, has_mass = float(chosen.loc[label, "opening_mass"]), measures.mass is not None
    by = [f"{value:{'+.1f' if has_mass else '+.2f'}}" for value in (change, turned)]
    whole = f" (opening mass {mass:.2f})" if has_mass else ""
    said = (
        "; asked for it in a system prompt, unsteered, the score on "
        f"{_counted(int(there['n']), 'dev prompt')} moves by {by[0]}{whole}, by the turn {by[1]}: "
    )
    alike = ALIKE if has_mass else abs(turned) / 10
    if change * direction < turned * direction - alike:
        return f"{said}asking does less"
    if has_mass and mass < BROKEN * float(start["opening_mass"]):
        return f"{said}asking moves it as far, and there the text breaks"
    return f"{said}asking the model does as well"


def _rate(row: dict[Any, Any], rate: str) -> str:
    low, high = row[f"{rate}_low"], row[f"{rate}_high"]
    return f"{row[rate]:.2f} [{low:.2f}, {high:.2f}]"
