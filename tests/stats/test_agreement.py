"""Cohen's κ is scikit-learn's, and its interval is over prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from ss_lens.stats.agreement import kappa, kappa_of_counts


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, second = draw.random(40) < 0.4, draw.random(40) < 0.6
    found = kappa(first, second, range(40), rng(), n_resamples=10)
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert (found.n, found.n_groups) == (40, 40)


def test_full_agreement_is_one_and_chance_is_zero() -> None:
    assert kappa_of_counts(np.array([3.0, 0, 0, 4])) == pytest.approx(1)
    assert kappa_of_counts(np.array([25.0, 25, 25, 25])) == pytest.approx(0)
    assert kappa_of_counts(np.array([0.0, 5, 5, 0])) == pytest.approx(-1)


def test_there_is_no_kappa_where_all_are_called_the_same() -> None:
    yes = np.full(6, True)
    found = kappa(yes, yes, range(6), rng())
    assert all(map(math.isnan, (found.kappa, found.low, found.high)))


def test_the_interval_draws_prompts_and_not_answers() -> None:
    """Answers that repeat say nothing new: with one prompt each, the interval is wider."""
    draw = np.random.default_rng(1)
    first = draw.random(30) < 0.5
    second = np.where(draw.random(30) < 0.2, ~first, first)
    once = kappa(first, second, range(30), rng())
    groups = np.repeat(range(30), 4).tolist()
    grouped = kappa(np.repeat(first, 4), np.repeat(second, 4), groups, rng())
    apart = kappa(np.repeat(first, 4), np.repeat(second, 4), range(120), rng())
    assert grouped.kappa == pytest.approx(once.kappa)
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high), abs=0.02)
    assert apart.high - apart.low < 0.7 * (grouped.high - grouped.low)


def test_one_prompt_has_no_interval() -> None:
    found = kappa(np.array([True, False]), np.array([True, False]), ["a", "a"], rng())
    assert found.kappa == 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)
