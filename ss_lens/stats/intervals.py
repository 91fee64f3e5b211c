"""Intervals for rates."""

from __future__ import annotations

import math
from statistics import NormalDist

from ss_lens.core.errors import UserError


def wilson_interval(
    successes: float | int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson 1927), which behaves at 0 and at 1.

    A trial may count as a share of a success, as the mean of several draws does; the interval is
    then wider than need be.

    >>> [round(bound, 4) for bound in wilson_interval(0, 10)]
    [0.0, 0.2775]
    """
    if not 0 <= successes <= n or n == 0:
        raise UserError(f"a rate needs 0 ≤ successes ≤ n and n > 0; got {successes} of {n}.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
