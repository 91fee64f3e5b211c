"""The optimised plane: found where it was planted, whatever the start's basis, never worse."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.linalg import subspace_angles
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from ss_lens import Activations, Plane, Site, UserError
from ss_lens.activations.activations import Evidence
from ss_lens.calibration.directions import DifferenceOfMeans
from ss_lens.calibration.global_direction import MaxMeanCosine
from ss_lens.calibration.plane_search.grassmann import Separation, ascend, ledoit_wolf
from ss_lens.calibration.planes import PC1, FittedPlane, Grassmann
from ss_lens.core.checks import check_positive
from tests.conftest import made_activations

SITES = tuple(Site(layer, s) for layer in range(4) for s in ("ln1_out", "ln2_out"))
ALL = torch.ones(len(SITES), dtype=torch.bool)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def orthonormal(d: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(noise(d, k, seed=seed)).Q


def planted(seed: int = 0, d: int = 20, n: int = 60) -> tuple[Evidence, Tensor]:
    """Classes apart in one plane, which is quiet there and loud elsewhere; and that plane.

    The class means differ outside the plane as well, so that neither the candidates nor their
    principal component lie in it, but there the noise drowns the difference. Over the sites the
    differences outside are uncorrelated with those inside, so that none tilts the best plane.
    """
    axes = orthonormal(d, d, seed)
    loudness = torch.ones(d).double()
    loudness[:2] = 0.2
    turn = torch.linspace(0, 2, len(SITES)).double()
    inside = torch.stack((turn.cos(), turn.sin()), dim=1)
    outside = 0.4 * noise(len(SITES), d - 2, seed=seed + 1)
    outside -= inside @ torch.linalg.lstsq(inside, outside).solution
    gap = torch.cat((inside, outside), dim=1)
    middle = 10 * noise(d, seed=seed + 2) / math.sqrt(d)
    middle[:2] = 0
    parts = []
    for s in (seed + 3, seed + 4):
        cloud = noise(2 * n, len(SITES), d, seed=s) * loudness + middle
        rows = (cloud[:n] + gap / 2) @ axes.T, (cloud[n:] - gap / 2) @ axes.T
        parts.append(made_activations(rows[0].float(), rows[1].float(), SITES))
    return Evidence(*parts), axes[:, :2]


def built(method: Any, evidence: Evidence) -> tuple[FittedPlane, Plane, Tensor]:
    """The method's plane, PC1's plane, and the global direction."""
    candidates = DifferenceOfMeans().candidates(evidence.train)
    direction = MaxMeanCosine().choose(candidates, evidence)
    start = PC1().build(direction, candidates, evidence).plane
    return method.build(direction, candidates, evidence), start, direction.vector.double()


def largest_angle_deg(a: Tensor, b: Tensor) -> float:
    return float(np.rad2deg(subspace_angles(a.numpy(), b.numpy()).max()))


def dense_criterion(acts: Activations, basis: Tensor, shrinkage: Any = None) -> float:
    """The definition with covariance matrices, in NumPy."""
    ratios = []
    for k in range(len(acts.sites)):
        classes = [h[:, k].double().numpy() for h in (acts.positive, acts.negative)]
        p, n = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in classes)
        pooled = (np.cov(p.T) * (len(p) - 1) + np.cov(n.T) * (len(n) - 1)) / (len(p) + len(n) - 2)
        share = 0.0 if shrinkage is None else float(shrinkage[k])
        d = len(pooled)
        pooled = (1 - share) * pooled + share * np.trace(pooled) / d * np.eye(d)
        q = basis.numpy()
        gap = q.T @ (p.mean(axis=0) - n.mean(axis=0))
        ratios.append(gap @ gap / np.trace(q.T @ pooled @ q))
    return float(np.mean(ratios))


# --- the criterion -------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_the_criterion_equals_its_definition_with_dense_covariances(seed: int) -> None:
    train = planted(seed, d=7, n=6)[0].train
    basis = orthonormal(7, 2, seed)
    for shrinkage in (None, torch.rand(len(SITES)).double()):
        zero = torch.zeros(len(SITES)).double()
        separation = Separation.of(train, ALL, zero if shrinkage is None else shrinkage)
        expected = dense_criterion(train, basis, shrinkage)
        assert separation(basis) == pytest.approx(expected, rel=1e-10)


@given(st.integers(0, 1000))
def test_the_criterion_depends_on_the_plane_and_not_on_its_basis(seed: int) -> None:
    separation = Separation.of(planted(seed, d=7, n=6)[0].train, ALL)
    basis, turn = orthonormal(7, 2, seed), orthonormal(2, 2, seed + 1)
    value, gradient = separation.value_and_gradient(basis)
    turned_value, turned_gradient = separation.value_and_gradient(basis @ turn)
    assert turned_value == pytest.approx(value, rel=1e-12)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(turned_gradient, gradient @ turn, rtol=0, atol=1e-12 * scale)


@given(st.integers(0, 1000))
def test_the_gradient_is_the_slope_along_every_geodesic(seed: int) -> None:
    separation = Separation.of(planted(seed, d=7, n=6)[0].train, ALL)
    basis = orthonormal(7, 2, seed)
    _, gradient = separation.value_and_gradient(basis)
    tangent = noise(7, 2, seed=seed + 1)
    tangent -= basis @ (basis.T @ tangent)
    ends = [torch.linalg.qr(basis + t * tangent).Q for t in (1e-5, -1e-5)]
    slope = (separation(ends[0]) - separation(ends[1])) / 2e-5
    assert float((gradient * tangent).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert float((basis.T @ gradient).abs().max()) < 1e-10 * float(gradient.abs().max())


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(2, 12), st.floats(0.01, 100))
def test_ledoit_wolf_equals_scikit_learn(seed: int, n: int, d: int, scale: float) -> None:
    rows = noise(n, d, seed=seed) * torch.linspace(0.1, 2, d).double()
    rows -= rows.mean(dim=0)
    expected = ledoit_wolf_shrinkage(rows.numpy(), assume_centered=True)
    assert float(ledoit_wolf(scale * rows)) == pytest.approx(expected, rel=1e-8)


def test_one_dimension_is_its_own_target() -> None:
    assert float(ledoit_wolf(torch.tensor([[1.0], [-1.0]]).double())) == 1


# --- the ascent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_planted_plane_is_found_from_afar(seed: int) -> None:
    evidence, truth = planted(10 * seed, n=400)
    fitted, start, _ = built(Grassmann(), evidence)
    before, after = (
        largest_angle_deg(plane.basis.double().T, truth) for plane in (start, fitted.plane)
    )
    assert before > 30
    assert after < 4
    assert fitted.report["objective_after"] > 1.5 * fitted.report["objective_before"]
    assert fitted.report["held_out_after"] > 1.5 * fitted.report["held_out_before"]


@pytest.mark.parametrize("seed", range(3))
def test_the_path_does_not_depend_on_the_basis_of_its_start(seed: int) -> None:
    evidence, _ = planted(seed)
    separation = Separation.of(evidence.train, ALL)
    start = orthonormal(20, 2, seed)
    for turn in (orthonormal(2, 2, seed + 1), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()):
        (one, step), (other, same_step) = (
            ascend(separation, basis, 60, 0.2) for basis in (start, start @ turn)
        )
        assert step == same_step
        torch.testing.assert_close(one @ one.T, other @ other.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("steps", "rate"), [(1, 3.0), (3, 1e-9), (5, 1.5), (30, 0.2)])
@pytest.mark.parametrize("seed", range(3))
def test_training_separation_never_falls(seed: int, steps: int, rate: float) -> None:
    report = built(Grassmann(steps=steps, learning_rate=rate), planted(seed)[0])[0].report
    assert report["objective_after"] >= report["objective_before"]
    assert 0 <= report["best_step"] <= steps


def test_a_step_that_only_loses_keeps_the_start() -> None:
    """From the top every step is down: the start is what is returned, to the bit."""
    separation = Separation.of(planted()[0].train, ALL)
    top, _ = ascend(separation, orthonormal(20, 2, 0), 100, 0.2)
    again, step = ascend(separation, top, 1, 1.5)
    assert step == 0
    assert torch.equal(again, top)


# --- the fitted plane ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_b1_is_the_direction_seen_in_the_plane_and_b2_faces_pc1(seed: int) -> None:
    fitted, start, direction = built(Grassmann(steps=30), planted(seed)[0])
    basis = fitted.plane.basis.double()
    shadow = basis.T @ (basis @ direction)
    torch.testing.assert_close(basis[0], shadow / shadow.norm(), rtol=0, atol=1e-6)
    assert float(basis[1] @ start.b2.double()) >= 0
    assert fitted.report["cos_b1"] == pytest.approx(float(basis[0] @ direction), abs=1e-6)
    assert 0 < fitted.report["cos_b1"] <= 1


def test_the_report_is_the_criterion_before_and_after() -> None:
    evidence, _ = planted()
    fitted, start, _ = built(Grassmann(steps=30), evidence)
    assert evidence.held_out is not None
    shrinkage = Separation.of(evidence.train, ALL).shrinkage
    for name, acts in (("objective", evidence.train), ("held_out", evidence.held_out)):
        for when, plane in (("before", start), ("after", fitted.plane)):
            expected = dense_criterion(acts, plane.basis.double().T, shrinkage)
            assert fitted.report[f"{name}_{when}"] == pytest.approx(expected, rel=1e-5)


def test_held_out_prompts_are_measured_and_never_chosen_by() -> None:
    one, other = planted(0)[0], planted(7)[0]
    mixed = Evidence(one.train, held_out=other.held_out)
    (fitted, *_), (same, *_) = built(Grassmann(steps=9), one), built(Grassmann(steps=9), mixed)
    assert torch.equal(fitted.plane.basis, same.plane.basis)
    assert fitted.report["held_out_after"] != same.report["held_out_after"]


def test_excluded_sites_do_not_count() -> None:
    def with_hole(acts: Activations | None) -> Activations:
        assert acts is not None
        same = torch.ones(len(acts.positive), 1, 20)
        return made_activations(
            torch.cat((same, acts.positive[:, 1:]), dim=1),
            torch.cat((same, acts.negative[:, 1:]), dim=1),
            SITES,
        )

    def without(acts: Activations | None) -> Activations:
        assert acts is not None
        return made_activations(acts.positive[:, 1:], acts.negative[:, 1:], SITES[1:])

    evidence, _ = planted()
    holes = Evidence(with_hole(evidence.train), with_hole(evidence.held_out))
    rest = Evidence(without(evidence.train), without(evidence.held_out))
    (one, *_), (other, *_) = built(Grassmann(steps=9), holes), built(Grassmann(steps=9), rest)
    torch.testing.assert_close(one.plane.basis, other.plane.basis, rtol=0, atol=1e-6)
    assert one.report == pytest.approx(other.report, rel=1e-6)


def test_fewer_prompts_than_dimensions_are_shrunk() -> None:
    report = built(Grassmann(steps=20), planted(n=6)[0])[0].report
    assert all(math.isfinite(value) for value in report.values())


def test_no_shrinkage_needs_more_prompts_than_dimensions() -> None:
    plain = Grassmann(steps=20, shrinkage="none")
    with pytest.raises(
        UserError,
        match=r"covariance of 20 prompts in 20 dimensions is singular, so the separation has no "
        r"highest value; use shrinkage='ledoit_wolf', or at least 22 prompts",
    ):
        built(plain, planted(n=10)[0])
    evidence = planted(n=11)[0]
    fitted, *_ = built(plain, evidence)
    expected = dense_criterion(evidence.train, fitted.plane.basis.double().T)
    assert fitted.report["objective_after"] == pytest.approx(expected, rel=1e-4)


def test_classes_that_do_not_vary_are_named_with_their_site() -> None:
    evidence, _ = planted()
    positive, negative = evidence.train.positive.clone(), evidence.train.negative.clone()
    positive[:, 3], negative[:, 3] = positive[:1, 3].clone(), negative[:1, 3].clone()
    still = Evidence(made_activations(positive, negative, SITES), evidence.held_out)
    with pytest.raises(UserError, match=r"each class do not vary at L1\.ln2_out, so there is no"):
        built(Grassmann(), still)


def test_one_prompt_per_class_does_not_vary() -> None:
    evidence, _ = planted()
    one = made_activations(evidence.train.positive[:1], evidence.train.negative[:1], SITES)
    with pytest.raises(UserError, match=r"each class do not vary at L0\.ln1_out"):
        built(Grassmann(), Evidence(one, evidence.held_out))


def test_held_out_activations_are_needed() -> None:
    with pytest.raises(UserError, match=r"Grassmann\(.*\) needs held_out activations"):
        built(Grassmann(), Evidence(planted()[0].train))


def test_a_missing_geoopt_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "geoopt", None)
    with pytest.raises(UserError, match=r'needs geoopt.*; pip install "ss_lens\[grassmann\]"\.'):
        built(Grassmann(), planted()[0])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="steps must be a whole number from 1 on; got 0"):
        Grassmann(steps=0)
    for rate in (0, -0.1, math.nan, math.inf, True):
        with pytest.raises(UserError, match="learning_rate must be a finite number above 0; got"):
            Grassmann(learning_rate=rate)
    with pytest.raises(UserError, match=r"learning_rate must be .*; got '1'"):
        check_positive("learning_rate", "1")
