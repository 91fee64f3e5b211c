"""Bootstrap intervals: SciPy's BCa where it applies, percentiles of given draws where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

CONFIDENCE = 0.95
N_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**24  # numbers, 128 MiB

Statistic = Callable[..., np.ndarray]
"""From samples ``[*rest, observation]`` and ``axis=-1`` to values ``[*rest]``."""


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """An interval and the draws behind it.

    Attributes:
        low: lower bounds.
        high: upper bounds.
        draws: the statistic in each resample.
    """

    low: Float[np.ndarray, "*rest"]
    high: Float[np.ndarray, "*rest"]
    draws: Float[np.ndarray, "draw *rest"]


def derive_rng(seed: int, *labels: object) -> np.random.Generator:
    """Return NumPy's generator of a seed and labels, the same in every process."""
    # Imported here, since judges behind an endpoint count intervals without torch.
    from transformer_lens.utilities.statistics import derive_generator

    return np.random.default_rng(derive_generator(seed, *labels).initial_seed())


def bca_interval(
    samples: Sequence[Float[np.ndarray, "_ *rest"]],
    statistic: Statistic,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> Bootstrap:
    """Return the bias-corrected and accelerated 95 % interval of a statistic (Efron 1987).

    Each sample is resampled on its own, along its first axis. The interval is SciPy's
    (``scipy.stats.bootstrap``). Where every sample is constant, all draws agree, BCa is undefined
    and the interval is the value itself. A sample of one observation says nothing about spread, so
    the interval is NaN.

    Args:
        samples: observations of each sample; the further axes agree between samples.
        statistic: reduces the last axis of as many arrays as there are samples.
        rng: of the resampling.
        n_resamples: draws.
    """
    moved = [np.moveaxis(np.asarray(sample, dtype=float), 0, -1) for sample in samples]
    rest = moved[0].shape[:-1]
    flat = [np.reshape(sample, (-1, sample.shape[-1])) for sample in moved]
    value = np.asarray(statistic(*flat, axis=-1), dtype=float)
    low, high, draws = value.copy(), value.copy(), np.tile(value, (n_resamples, 1))
    if min(sample.shape[-1] for sample in flat) < 2:
        low[:] = high[:] = np.nan
    elif (varied := np.any([np.ptp(sample, axis=-1) != 0 for sample in flat], axis=0)).any():
        chosen = [sample[varied] for sample in flat]
        found = stats.bootstrap(
            chosen,
            statistic,
            n_resamples=n_resamples,
            batch=max(1, _DRAWN_AT_ONCE // max(sample.size for sample in chosen)),
            vectorized=True,
            axis=-1,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=rng,
        )
        low[varied], high[varied] = found.confidence_interval
        draws[:, varied] = found.bootstrap_distribution.T
    return Bootstrap(low.reshape(rest), high.reshape(rest), draws.reshape(-1, *rest))


def bca_mean_interval(
    values: Float[np.ndarray, "_ *rest"],
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Return the BCa 95 % interval of the mean over the first axis, as :func:`bca_interval`.

    For a paired difference, give the differences.
    """
    found = bca_interval([values], np.mean, rng, n_resamples)
    return found.low, found.high


def percentile_interval(
    draws: Float[np.ndarray, "draw *rest"],
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Return the 2.5 % and 97.5 % quantiles over draws.

    For statistics that some draws leave undefined (a ratio, pairs within folds) or that are too
    slow to repeat without each observation (a calibration): BCa needs the statistic in every
    resample and with each observation left out. NaN without any draw.
    """
    if not len(draws):
        nothing = np.full(draws.shape[1:], np.nan)
        return nothing, nothing.copy()
    tail = (1 - CONFIDENCE) / 2
    low, high = np.asarray(np.quantile(draws, (tail, 1 - tail), axis=0))
    return np.asarray(low), np.asarray(high)


def resampled_counts(
    occurrences: Int[np.ndarray, "distinct"], n_draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "draw distinct"]:
    """Return how often each distinct observation is drawn in resamples with replacement.

    Args:
        occurrences: how often each occurs in the sample; ones, where all are distinct.
        n_draws: resamples, each as large as the sample.
        rng: of the resampling.
    """
    n = int(occurrences.sum())
    return rng.multinomial(n, occurrences / n, size=n_draws)


def resampled_means(
    values: Float[np.ndarray, "observation setting"], counts: Int[np.ndarray, "draw observation"]
) -> Float[np.ndarray, "draw setting"]:
    """Return the mean of each setting in each resample, over the values that are defined.

    Args:
        values: one row per observation, the same ones at every setting; NaN is left out.
        counts: of :func:`resampled_counts`.
    """
    defined = np.isfinite(values)
    sums = counts @ np.where(defined, values, 0.0)
    sizes = counts @ defined.astype(float)
    return np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0)


def best_shares(
    means: Float[np.ndarray, "draw setting"], *, lowest: bool
) -> Float[np.ndarray, "setting"]:
    """Return in which share of the draws each setting is the best; ties go to the first.

    A draw in which no setting is defined counts for none.
    """
    if not means.size:
        return np.zeros(means.shape[1])
    ranked = np.where(np.isnan(means), np.inf, means if lowest else -means)
    best = ranked.argmin(axis=1)[np.isfinite(ranked).any(axis=1)]
    return np.bincount(best, minlength=means.shape[1]) / len(means)
