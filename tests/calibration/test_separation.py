"""Projections onto a direction, and how far they separate the classes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ss_lens import Site
from ss_lens.calibration.separation import (
    auroc,
    class_projections,
    cohens_d,
    projections,
)
from tests.conftest import made_activations

SITES = tuple(Site(layer, s) for layer in range(3) for s in ("ln1_out", "ln2_out"))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- projections and how far they separate the classes -------------------------------------------


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_projections_are_cosines_whatever_the_length(seed: int, scale: float) -> None:
    h, b1 = noise(5, 6, 16, seed=seed), torch.eye(16)[3]
    got = projections(scale * h, b1)
    for i, j in itertools.product(range(5), range(6)):
        v = h[i, j].double().numpy()
        assert float(got[i, j]) == pytest.approx(v[3] / np.sqrt((v * v).sum()), abs=1e-6)


def test_class_projections_average_cosines_and_not_activations() -> None:
    """One long activation must not outvote two short ones (the unit normalisation of eq. 9)."""
    b1 = torch.tensor([1.0, 0.0])
    positive = torch.tensor([[100.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]).unsqueeze(1)
    negative = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).unsqueeze(1)
    got = class_projections(made_activations(positive, negative, SITES[:1]), b1)
    assert float(got.positive[0]) == pytest.approx(-1 / 3)
    assert float(got.negative[0]) == pytest.approx(1 / 3)
    assert float(got.product[0]) == pytest.approx(-1 / 9)


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_auroc_equals_scikit_learn_also_with_ties(seed: int, n: int, m: int) -> None:
    positive, negative = (2 * noise(n, 3, seed=seed)).round(), noise(m, 3, seed=seed + 1).round()
    got = auroc(positive, negative)
    for j in range(3):
        scores = torch.cat((positive[:, j], negative[:, j])).numpy()
        assert float(got[j]) == pytest.approx(roc_auc_score([1] * n + [0] * m, scores))


def test_auroc_keeps_its_sign() -> None:
    low, high = torch.zeros(3, 1), torch.ones(2, 1)
    assert float(auroc(high, low)) == 1
    assert float(auroc(low, high)) == 0
    assert float(auroc(low, low)) == 0.5


@given(st.integers(0, 1000))
def test_cohens_d_equals_the_textbook_formula(seed: int) -> None:
    positive, negative = noise(7, 2, seed=seed).double(), noise(4, 2, seed=seed + 1).double()
    a, b = positive.numpy(), negative.numpy()
    pooled = np.sqrt((6 * a.var(axis=0, ddof=1) + 3 * b.var(axis=0, ddof=1)) / 9)
    expected = (a.mean(axis=0) - b.mean(axis=0)) / pooled
    np.testing.assert_allclose(cohens_d(positive, negative), expected, rtol=1e-12)


def test_cohens_d_without_spread_is_infinite_or_zero() -> None:
    positive, negative = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.0, 2.0, 5.0]])
    assert cohens_d(positive, negative).tolist() == [math.inf, 0.0, -math.inf]
