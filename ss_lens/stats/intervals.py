"""Intervals of rates and of means."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pandas as pd

from ss_lens.core.errors import UserError
from ss_lens.stats.bootstrap import bca_mean_interval


def wilson_interval(
    successes: float | int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the Wilson score interval of a rate (Wilson 1927), which behaves at 0 and at 1.

    A trial may count as a share of a success, as the mean of several draws does; the interval is
    then wider than need be.

    >>> [round(bound, 4) for bound in wilson_interval(0, 10)]
    [0.0, 0.2775]

    Raises:
        UserError: successes outside of 0 to ``n``, no trial, or a confidence outside of 0 to 1.
    """
    if not 0 <= successes <= n or n == 0:
        raise UserError(
            f"a rate needs 0 ≤ successes ≤ n and n > 0; got {successes} of {n}. Count the trials "
            "that have an outcome."
        )
    if not 0 < confidence < 1:
        raise UserError(
            f"confidence must lie between 0 and 1; got {confidence}. Write 0.95 for 95 %."
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: pd.Series, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % interval of a mean: Wilson's for truth values, else BCa over rows.

    NaN without any row. For numbers also NaN with a single one, and the value itself where all are
    equal; see :func:`ss_lens.stats.bootstrap.bca_interval`.

    Args:
        values: one per row.
        rng: of the resampling.

    Raises:
        UserError: a value is undefined or infinite; averaging the others is the caller's choice.
    """
    if values.empty:
        return math.nan, math.nan
    if undefined := int((~np.isfinite(values.to_numpy(dtype=float))).sum()):
        raise UserError(
            f"{undefined} of {len(values)} values are undefined (NaN) or infinite, and their mean "
            "has no interval; expected finite numbers. Drop them and report how many are left."
        )
    if pd.api.types.is_bool_dtype(values.infer_objects()):
        return wilson_interval(int(values.sum()), len(values))
    low, high = bca_mean_interval(values.to_numpy(dtype=float), rng)
    return float(low), float(high)
