"""Bootstrap intervals against SciPy and formulas, and where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ss_lens.stats.bootstrap import (
    bca_interval,
    bca_mean_interval,
    derive_rng,
    percentile_interval,
    resampled_counts,
)


def test_the_interval_of_a_mean_is_scipys_column_by_column() -> None:
    values = np.random.default_rng(0).exponential(size=(30, 3))
    low, high = bca_mean_interval(values, np.random.default_rng(5))
    for column in range(3):
        found = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=2000, rng=np.random.default_rng(5)
        )
        assert (low[column], high[column]) == pytest.approx(found.confidence_interval, rel=1e-6)


def test_bca_leans_towards_the_long_tail_where_percentiles_do_not() -> None:
    values = np.random.default_rng(1).lognormal(sigma=1.2, size=60)
    low, high = bca_mean_interval(values, derive_rng(0), n_resamples=4000)
    found = bca_interval([values], np.mean, derive_rng(0), n_resamples=4000)
    plain_low, plain_high = percentile_interval(found.draws)
    assert low > plain_low
    assert high > plain_high


def test_bca_covers_a_skewed_mean_about_as_often_as_it_claims() -> None:
    """400 samples of 30 exponential values, one column each."""
    values = np.random.default_rng(2).exponential(size=(30, 400))
    low, high = bca_mean_interval(values, derive_rng(0), n_resamples=1000)
    assert 0.88 <= ((low <= 1) & (high >= 1)).mean() <= 0.98


def test_constant_columns_are_points_and_leave_the_others_alone() -> None:
    values = np.random.default_rng(3).normal(size=(20, 2))
    with_constant = np.insert(values, 1, 7.0, axis=1)
    low, high = bca_mean_interval(with_constant, derive_rng(0))
    assert low[1] == high[1] == 7.0
    expected = bca_mean_interval(values, derive_rng(0))
    assert np.array_equal([low[[0, 2]], high[[0, 2]]], expected)


def test_one_observation_has_no_interval() -> None:
    assert np.isnan(bca_mean_interval(np.array([3.0]), derive_rng(0))).all()


def test_two_observations_bound_their_mean_and_ties_do_not_narrow_it_to_a_point() -> None:
    low, high = bca_mean_interval(np.array([1.0, 4.0]), derive_rng(0))
    assert (low, high) == (1.0, 4.0)
    tied = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    low, high = bca_mean_interval(tied, derive_rng(0))
    assert 0 <= low <= tied.mean() < high <= 1
    mirrored = bca_mean_interval(-tied, derive_rng(0))
    assert mirrored == pytest.approx((-high, -low), abs=0.17)  # a step of one observation


def test_a_product_of_two_means_takes_samples_of_different_sizes() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(2, 1, size=(40, 2)), rng.normal(-1, 1, size=(25, 2))
    b[:, 1] = -1.0  # one constant sample of two still varies

    def product(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) * y.mean(axis=axis)

    found = bca_interval([a, b], product, derive_rng(0))
    value = a.mean(0) * b.mean(0)
    assert found.draws.shape == (2000, 2)
    assert (found.low < value).all()
    assert (value < found.high).all()
    spread = np.sqrt((a.var(0) / 40) * b.mean(0) ** 2 + (b.var(0) / 25) * a.mean(0) ** 2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_the_interval_does_not_depend_on_how_many_draws_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(6).normal(size=(15, 4))
    whole = bca_mean_interval(values, derive_rng(0))
    monkeypatch.setattr("ss_lens.stats.bootstrap._DRAWN_AT_ONCE", 200)
    np.testing.assert_allclose(bca_mean_interval(values, derive_rng(0)), whole, rtol=1e-12)


def test_the_interval_of_no_draws_is_undefined() -> None:
    assert np.isnan(percentile_interval(np.empty((0, 3)))).all()
    low, high = percentile_interval(np.arange(1001.0))
    assert (low, high) == pytest.approx((25, 975))


def test_resamples_are_as_large_as_the_sample_and_draw_each_observation_alike() -> None:
    occurrences = np.array([1, 3, 6])
    counts = resampled_counts(occurrences, 5000, derive_rng(0))
    assert counts.shape == (5000, 3)
    assert (counts.sum(axis=1) == 10).all()
    assert counts.mean(axis=0) == pytest.approx(occurrences, abs=0.1)


def test_a_seed_and_labels_name_one_stream() -> None:
    assert derive_rng(0, "a").random() == derive_rng(0, "a").random()
    assert derive_rng(0, "a").random() != derive_rng(0, "b").random()
