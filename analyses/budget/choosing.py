"""Strengths that spend a budget on dev, and of several the one that dev takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.budget.answered import Answered
from analyses.budget.families import FULL_TURN, Family
from analyses.budget.matching import Curve, Match
from ss_lens import ContrastiveDataset
from ss_lens.core.progress import progress_bar
from ss_lens.scoring.refusal_score import refusal_score

FIXED = "there is no strength to match; this is at its own KL"
Goal = Literal["weaken", "strengthen"]


class Choice(NamedTuple):
    """The match that dev takes, its sense, and all that it was taken from."""

    match: Match
    sense: str = ""
    candidates: str = ""


def matched(
    texts: Answered,
    families: Mapping[str, Family],
    budgets: Sequence[float | int],
    tolerance: float,
) -> dict[tuple[str, float | int], tuple[Match, ...]]:
    """For each family and budget the strengths that spend it, decided on ``texts`` of dev alone."""
    texts = texts.without_empty()
    found = {}
    with progress_bar(len(families) * len(budgets), "match", "budget") as bar:
        for name, family in families.items():
            curve = Curve(partial(texts.mean_kl, family), family.strengths, family.circle)
            for budget in budgets:
                if family.is_fixed:
                    found[name, budget] = (Match(math.nan, curve.at([0.0])[0], FIXED),)
                elif family.circle:
                    found[name, budget] = curve.crossings(budget, tolerance)
                else:
                    found[name, budget] = (curve.first_match(budget, tolerance),)
                bar.update()
    return found


def chosen(
    model: TransformerBridge,
    family: Family,
    found: Sequence[Match],
    dev: ContrastiveDataset,
    goal: Goal,
) -> Choice:
    """Of several crossings that with the best mean score of dev's positive prompts."""
    if not family.circle or found[0].problem:
        return Choice(found[0])
    means = []
    for match in found:
        with ss_lens.steer(model, family.calibration, family.at(match.strength)):
            means.append(float(refusal_score(model, dev.positive)["refusal_score"].mean()))
    best = (min if goal == "weaken" else max)(range(len(found)), key=means.__getitem__)
    signed = [_signed(match.strength) for match in found]
    told = [f"{angle:+.4g}° {mean:+.2f}" for angle, mean in zip(signed, means, strict=True)]
    sense = "+" if signed[best] >= 0 else "−"
    return Choice(found[best], sense, "; ".join(told).replace("-", "−"))


def _signed(angle_deg: float) -> float:
    """The angle as the shorter way round, above −180 and up to 180 degrees."""
    reduced = angle_deg % FULL_TURN
    return reduced if reduced <= FULL_TURN / 2 else reduced - FULL_TURN
