"""How often is this angle chosen? The choice made again on resamples of the dev prompts.

No pass of the model is needed: what is resampled are the stored scores of the prompts.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ss_lens.stats.bootstrap import (
    N_RESAMPLES,
    best_shares,
    derive_rng,
    resampled_counts,
    resampled_means,
)

Setting = TypeVar("Setting", bound=Hashable)


def order_on_circle(angle: float) -> tuple[float, float]:
    """The order in which ties are broken: from 0 on, by the shorter way round."""
    return min(angle, -angle % 360), angle


def shares_by_score(
    scores: Mapping[Setting, pd.Series], *, lowest: bool, seed: int = 0
) -> dict[Setting, float]:
    """In which share of the resamples of prompts each setting has the best mean score.

    Args:
        scores: by setting, ties going to the first; each by prompt.
        lowest: whether the best is the lowest.
        seed: of the resampling.
    """
    if not scores:
        return {}
    wide = pd.DataFrame(dict(enumerate(scores.values())))
    counts = _counts(len(wide), seed)
    shares = best_shares(resampled_means(wide.to_numpy(dtype=float), counts), lowest=lowest)
    return dict(zip(scores, shares.tolist(), strict=True))


def scan_shares(
    scan: pd.DataFrame,
    score: str,
    prompt_class: str,
    *,
    lowest: bool,
    barred: Collection[float] = (),
    seed: int = 0,
) -> dict[float, float]:
    """The same of the angles of a scan, without those that are barred.

    Args:
        scan: of one arm: ``prompt_class``, ``prompt_index``, ``angle_deg`` and the score.
        score: a column of it.
        prompt_class: whose prompts it is averaged over.
        lowest: whether the best is the lowest.
        barred: angles that cannot be chosen, such as those at which answers collapse.
        seed: of the resampling.
    """
    here = scan.loc[(scan["prompt_class"] == prompt_class) & ~scan["angle_deg"].isin([*barred])]
    angles = sorted(map(float, here["angle_deg"].unique()), key=order_on_circle)
    by_angle = {
        angle: here.loc[here["angle_deg"] == angle].set_index("prompt_index")[score]
        for angle in angles
    }
    found = shares_by_score(by_angle, lowest=lowest, seed=seed)
    return {angle: found[angle] for angle in angles}


def constrained_shares(
    scores: Float[np.ndarray, "prompt setting"],
    limited: Sequence[tuple[float | int, Mapping[str, Float[np.ndarray, "_ setting"]]]],
    of_class: str,
    *,
    lowest: bool,
    seed: int = 0,
) -> Float[np.ndarray, "setting"]:
    """In which share of the resamples each setting has the best mean score within all limits.

    Each class of prompts is resampled on its own, the same draw for all that is measured on it.

    Args:
        scores: of the class ``of_class``; NaN where undefined.
        limited: limits, each with the values by class whose mean over all prompts of these classes
            may not exceed it.
        of_class: whose prompts are scored.
        lowest: whether the best is the lowest.
        seed: of the resampling.
    """
    counts = {of_class: _counts(len(scores), seed, of_class)}
    means = resampled_means(scores, counts[of_class])
    for limit, by_class in limited:
        for label, values in by_class.items():
            if label not in counts:
                counts[label] = _counts(len(values), seed, label)
        values = np.concatenate([*by_class.values()])
        drawn = np.concatenate([counts[label] for label in by_class], axis=1)
        means = np.where(resampled_means(values, drawn) <= limit, means, np.nan)
    return best_shares(means, lowest=lowest)


def _counts(n: int, seed: int, *labels: str) -> Int[np.ndarray, "draw observation"]:
    rng = derive_rng(seed, "choice", *labels)
    return resampled_counts(np.ones(n, dtype=int), N_RESAMPLES, rng)
