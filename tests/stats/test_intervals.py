"""Wilson intervals against a published table, and intervals of means of any kind."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from ss_lens import UserError
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng
from ss_lens.stats.intervals import mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        # Wilson without continuity correction, as tabulated in Newcombe (1998), Table I.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_intervals_agree_with_the_published_table(
    successes: int, n: int, expected: tuple[float, float]
) -> None:
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_solves_its_quadratic_and_holds_the_rate(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson_interval(successes, n)
    rate, z = successes / n, 1.959963984540054
    assert 0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1
    for bound in (low, high):
        # Each bound is a rate whose score statistic is exactly z.
        assert (rate - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_wilson_interval_is_scipys(n: int) -> None:
    for successes in range(n + 1):
        found = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((found.low, found.high), abs=1e-12)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_mirrors_and_narrows(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))
    more_low, more_high = wilson_interval(10 * successes, 10 * n)
    assert more_high - more_low < high - low
    sure_low, sure_high = wilson_interval(successes, n, confidence=0.99)
    assert sure_high - sure_low > high - low


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (0, -1)])
def test_an_impossible_rate_is_rejected(successes: int, n: int) -> None:
    with pytest.raises(UserError, match=rf"0 ≤ successes ≤ n and n > 0; got {successes} of {n}"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_a_confidence_that_is_no_probability_is_rejected(confidence: float) -> None:
    with pytest.raises(UserError, match=r"confidence must lie between 0 and 1; got .* Write 0.95"):
        wilson_interval(1, 2, confidence)


def test_truth_values_have_wilsons_interval_also_where_others_were_dropped() -> None:
    mixed = pd.Series([True, math.nan, False, True, True]).dropna()
    assert mean_interval(mixed, derive_rng(0)) == wilson_interval(3, 4)


def test_numbers_have_the_bca_interval_of_their_mean() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    low, high = mean_interval(pd.Series(values), derive_rng(1))
    assert (low, high) == bca_mean_interval(values, derive_rng(1))
    assert low < values.mean() < high


def test_no_value_and_a_single_one_have_no_interval() -> None:
    for values in ([], [2.5]):
        assert np.isnan(mean_interval(pd.Series(values, dtype=float), derive_rng(0))).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_undefined_value_is_an_error_and_does_not_pass_into_the_bounds(value: float) -> None:
    with pytest.raises(UserError, match=r"1 of 3 values are undefined \(NaN\) or infin.*Drop them"):
        mean_interval(pd.Series([1.0, value, 2.0]), derive_rng(0))
