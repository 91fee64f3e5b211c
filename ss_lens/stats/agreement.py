"""Agreement of two raters beyond chance: Cohen's κ, with an interval over groups of answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ss_lens.stats.bootstrap import N_RESAMPLES, percentile_interval, resampled_counts


@dataclass(frozen=True)
class Kappa:
    """Cohen's κ with its 95 % interval, of ``n`` answers to ``n_groups`` prompts.

    NaN where a rater says the same of all, so that chance alone gives full agreement.
    """

    kappa: float
    low: float
    high: float
    n: int
    n_groups: int


def kappa_of_counts(counts: Float[np.ndarray, "*rest 4"]) -> Float[np.ndarray, "*rest"]:
    """Cohen's κ (1960) from how often both raters, the first, the second, and neither say yes.

    >>> kappa_of_counts(np.array([20.0, 5, 10, 15])).round(2).item()
    0.4
    """
    both, first, second, neither = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    n = both + first + second + neither
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed = (both + neither) / n
        chance = ((both + first) * (both + second) + (neither + first) * (neither + second)) / n**2
        return np.where(chance < 1, (agreed - chance) / (1 - chance), np.nan)


def kappa(
    first: Bool[np.ndarray, "answer"],
    second: Bool[np.ndarray, "answer"],
    groups: Sequence[Hashable],
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> Kappa:
    """Cohen's κ of two raters' yes and no, with a percentile interval over resampled groups.

    Answers to one prompt are alike, so prompts are drawn and not answers. Draws in which a rater
    says the same of all have no κ and are left out.

    Args:
        first: what people say.
        second: what is held against it.
        groups: the prompt of each answer.
        rng: of the resampling.
        n_resamples: draws.
    """
    codes, distinct = pd.factorize(np.asarray(groups, dtype=object))
    cells = np.stack([first & second, first & ~second, ~first & second, ~first & ~second], axis=-1)
    of_group = np.zeros((len(distinct), 4))
    np.add.at(of_group, codes, cells.astype(float))
    value = float(kappa_of_counts(of_group.sum(axis=0))) if len(codes) else float("nan")
    draws = np.empty(0)
    if len(distinct) > 1:
        drawn = resampled_counts(np.ones(len(distinct), dtype=int), n_resamples, rng)
        draws = kappa_of_counts(drawn @ of_group)
    low, high = percentile_interval(draws[np.isfinite(draws)])
    return Kappa(value, float(low), float(high), len(codes), len(distinct))
