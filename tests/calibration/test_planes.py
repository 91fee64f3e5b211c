"""Planes, on known geometry: who spans them, with which orientation, and who may not."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from ss_lens import Activations, Plane, Site, UserError
from ss_lens.activations.activations import Evidence
from ss_lens.calibration.candidates import Candidates
from ss_lens.calibration.directions import DifferenceOfMeans
from ss_lens.calibration.global_direction import AtSite, Consensus, GlobalDirection, MaxMeanCosine
from ss_lens.calibration.planes import (
    PC1,
    ClassMeans,
    FittedPlane,
    Grassmann,
    MatchedRandomPlane,
    NextBest,
    PlaneMethod,
    RandomPlane,
    RandomSecond,
)
from ss_lens.core.values import read_value
from tests.conftest import made_activations

D = 24
SITES = tuple(Site(layer, s) for layer in range(4) for s in ("ln1_out", "ln2_out"))
FEW_STEPS = Grassmann(steps=5)
METHODS: list[Any] = [
    PC1(),
    RandomSecond(seed=1),
    RandomPlane(seed=1),
    MatchedRandomPlane(seed=1),
    MatchedRandomPlane(seed=1, sites="L1.ln1_out,L2.ln2_out"),
    NextBest(),
    ClassMeans(),
    FEW_STEPS,
]
DETERMINED = [PC1(), NextBest(), ClassMeans(), FEW_STEPS]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def evidence_of(seed: int = 0, n: int = 10) -> Evidence:
    """Classes whose gap turns from site to site, around a mean that both share."""
    gap = noise(D, seed=seed) + noise(len(SITES), D, seed=seed + 1)
    parts = []
    for s in (seed + 2, seed + 3):
        cloud = 3 + noise(2 * n, len(SITES), D, seed=s)
        parts.append(made_activations(cloud[:n] + gap, cloud[n:] - gap, SITES))
    return Evidence(*parts)


def built(method: Any, evidence: Evidence, choice: Any = None) -> tuple[FittedPlane, Tensor]:
    """The method's plane and the global direction that it was given."""
    candidates = DifferenceOfMeans().candidates(evidence.train)
    direction = (choice or MaxMeanCosine()).choose(candidates, evidence)
    return method.build(direction, candidates, evidence), direction.vector.double()


def candidates_of(*angles_deg: float | None) -> Candidates:
    """Candidates in the plane of the first two axes; excluded where there is no angle."""
    valid = torch.tensor([angle is not None for angle in angles_deg])
    theta = torch.deg2rad(torch.tensor([angle or 0.0 for angle in angles_deg]).double())
    rows = torch.stack((theta.cos(), theta.sin(), 0 * theta), dim=-1)
    rows[~valid] = 0
    return Candidates(rows.float(), valid, SITES[: len(valid)], valid.float())


def by_scores(candidates: Candidates, scores: list[float], site: Site | None) -> GlobalDirection:
    return GlobalDirection(torch.tensor([1.0, 0.0, 0.0]), site, torch.tensor(scores))


def nothing() -> Evidence:
    """For methods that read no activations."""
    return evidence_of()


def projector(plane: Plane) -> Tensor:
    basis = plane.basis.double()
    return basis.T @ basis


# --- what every method returns -------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_every_plane_is_orthonormal_and_repeats_bit_for_bit(method: Any, seed: int) -> None:
    evidence = evidence_of(seed)
    (fitted, _), (again, _) = built(method, evidence), built(method, evidence)
    basis = fitted.plane.basis.double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(2).double(), rtol=0, atol=1e-6)
    assert torch.equal(fitted.plane.basis, again.plane.basis)
    assert fitted.report == again.report
    assert fitted.plane.b1.dtype == torch.float32


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if not isinstance(m, RandomPlane | MatchedRandomPlane | Grassmann)],
    ids=repr,
)
@pytest.mark.parametrize("choice", [MaxMeanCosine(), AtSite(site="L1.ln2_out")], ids=repr)
def test_angle_zero_is_the_global_direction(method: Any, choice: Any) -> None:
    fitted, direction = built(method, evidence_of(), choice)
    torch.testing.assert_close(fitted.plane.b1.double(), direction, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", DETERMINED, ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_a_plane_turns_with_the_basis_of_the_space(method: Any, seed: int) -> None:
    turn = torch.linalg.qr(noise(D, D, seed=seed + 50).double()).Q.float()

    def turned(acts: Activations | None) -> Activations:
        assert acts is not None
        return made_activations(acts.positive @ turn, acts.negative @ turn, acts.sites)

    here = evidence_of(seed)
    there = Evidence(turned(here.train), turned(here.held_out))
    one, other = built(method, here)[0].plane, built(method, there)[0].plane
    torch.testing.assert_close(one.b1 @ turn, other.b1, rtol=0, atol=1e-4)
    # The sign of PC1's b2 (and with it Grassmann's) is a convention of the coordinates.
    sign = 1 if isinstance(method, NextBest | ClassMeans) else (one.b2 @ turn @ other.b2).sign()
    torch.testing.assert_close(sign * one.b2 @ turn, other.b2, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_method_is_its_text(method: Any) -> None:
    assert read_value(repr(method), get_args(PlaneMethod), "plane") == method


def test_only_those_that_measure_report() -> None:
    reports = {type(m): set(built(m, evidence_of())[0].report) for m in METHODS}
    assert reports == {
        PC1: set(),
        RandomSecond: set(),
        RandomPlane: set(),
        MatchedRandomPlane: {"energy", "target_energy", "isotropic_energy", "exponent"},
        NextBest: {"site_index", "score", "angle_deg", "skipped"},
        ClassMeans: {"positive_outside", "negative_outside"},
        Grassmann: {
            "objective_before",
            "objective_after",
            "held_out_before",
            "held_out_after",
            "cos_b1",
            "best_step",
        },
    }
    assert set(reports) == set(get_args(PlaneMethod))


# --- PC1 -----------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_pc1_equals_numpy_svd_and_gram_schmidt_with_the_sign_rule(seed: int) -> None:
    candidates = DifferenceOfMeans().candidates(evidence_of(seed).train)
    rows = candidates.directions.double().numpy()
    _, s, vh = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    fitted, direction = built(PC1(), evidence_of(seed))
    if s[0] / s[1] > 1.05:  # else the component is hardly determined
        component = vh[0] * np.sign(vh[0][np.abs(vh[0]).argmax()])
        b1 = direction.numpy() / np.linalg.norm(direction.numpy())
        b2 = component - (component @ b1) * b1
        np.testing.assert_allclose(fitted.plane.b2, b2 / np.linalg.norm(b2), atol=1e-4)


def test_pc1_needs_three_candidates() -> None:
    candidates = candidates_of(0, 40, None)
    with pytest.raises(UserError, match="at least 3 sites with a direction, got 2"):
        PC1().build(by_scores(candidates, [1, 0.5, math.nan], SITES[0]), candidates, nothing())


# --- the random controls -------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_a_random_axis_is_at_right_angles_and_decided_by_its_seed(seed: int, d: int) -> None:
    b1 = noise(d, seed=seed)
    direction = GlobalDirection(b1 / b1.norm(), None, torch.ones(3))
    candidates = candidates_of(0, 40, 80)
    plane = RandomSecond(seed=seed).build(direction, candidates, nothing()).plane
    drawn = np.random.default_rng(seed).standard_normal(d)
    unit = (b1 / b1.norm()).double().numpy()
    rest = drawn - (drawn @ unit) * unit
    np.testing.assert_allclose(plane.b1, unit, atol=1e-6)
    np.testing.assert_allclose(plane.b2, rest / np.linalg.norm(rest), atol=1e-4)


@pytest.mark.parametrize("kind", [RandomSecond, RandomPlane, MatchedRandomPlane])
def test_other_seeds_give_other_planes(kind: Any) -> None:
    evidence = evidence_of()
    planes = [built(kind(seed=s), evidence)[0].plane for s in range(5)]
    for i in range(5):
        for j in range(i):
            assert abs(float(planes[i].b2 @ planes[j].b2)) < 0.9


def test_a_random_plane_has_nothing_to_do_with_the_direction() -> None:
    """Over many draws the squared cosine of b1 to any direction averages 1/d."""
    evidence = evidence_of()
    candidates = DifferenceOfMeans().candidates(evidence.train)
    direction = MaxMeanCosine().choose(candidates, evidence)
    squares = [
        float(
            RandomPlane(seed=s).build(direction, candidates, evidence).plane.b1 @ direction.vector
        )
        ** 2
        for s in range(400)
    ]
    assert np.mean(squares) == pytest.approx(1 / D, rel=0.3)


@pytest.mark.parametrize("kind", [RandomSecond, RandomPlane, MatchedRandomPlane])
def test_a_random_plane_needs_a_seed(kind: Any) -> None:
    with pytest.raises(UserError, match=r"a random plane needs a seed, .*; pass seed=0"):
        kind()
    with pytest.raises(UserError, match="seed must be a whole number from 0 on; got -1"):
        kind(seed=-1)


# --- the next-best candidate ---------------------------------------------------------------------


def test_the_next_best_spans_the_plane_with_the_best() -> None:
    candidates = candidates_of(0, 30, -120, 60)
    direction = by_scores(candidates, [0.9, 0.5, 0.7, 0.6], SITES[0])
    fitted = NextBest().build(direction, candidates, nothing())
    assert fitted.plane.b2.tolist() == pytest.approx([0, -1, 0], abs=1e-6)
    assert fitted.report == pytest.approx(
        {"site_index": 2, "score": 0.7, "angle_deg": 120, "skipped": 0}, rel=1e-5
    )


def test_excluded_sites_and_near_parallel_candidates_are_skipped() -> None:
    candidates = candidates_of(0, None, 0.5, 179.5, 2, 50)
    scores = [0.9, math.nan, 0.8, 0.7, 0.6, 0.5]
    fitted = NextBest().build(by_scores(candidates, scores, SITES[0]), candidates, nothing())
    assert fitted.report == pytest.approx(
        {"site_index": 4, "score": 0.6, "angle_deg": 2, "skipped": 2}, rel=1e-4
    )


def test_the_direction_may_have_a_lower_score_than_the_next_best() -> None:
    """At a named site the scores are cosines; elsewhere a chosen site need not be the maximum."""
    candidates = candidates_of(0, 40, 80)
    direction = by_scores(candidates, [0.1, 0.5, 0.3], SITES[0])
    assert NextBest().build(direction, candidates, nothing()).report["site_index"] == 1


def test_after_a_consensus_the_best_candidate_that_spans_a_plane_is_taken() -> None:
    candidates = candidates_of(0.1, 30, 60)
    direction = by_scores(candidates, [0.9, 0.8, 0.7], None)
    assert NextBest().build(direction, candidates, nothing()).report["site_index"] == 1


def test_equal_scores_go_to_the_first_site() -> None:
    candidates = candidates_of(0, 60, 30)
    direction = by_scores(candidates, [1.0, 0.5, 0.5], SITES[0])
    assert NextBest().build(direction, candidates, nothing()).report["site_index"] == 1


def test_candidates_on_one_line_span_no_plane() -> None:
    candidates = candidates_of(0, 0.3, 180, None)
    direction = by_scores(candidates, [0.9, 0.8, -0.9, math.nan], SITES[0])
    with pytest.raises(
        UserError,
        match=r"no other candidate spans a plane with the direction: 2 lie within 1° .* or use "
        r"RandomSecond\(seed=0\)",
    ):
        NextBest().build(direction, candidates, nothing())


# --- the plane of the class means ----------------------------------------------------------------


def unit_means(acts: Activations, site: Site) -> tuple[Tensor, Tensor]:
    p, n = ((h.double() / h.double().norm(dim=-1, keepdim=True)).mean(0) for h in acts.at(site))
    return p, n


def test_the_class_mean_plane_holds_the_midpoint_and_nearly_both_means() -> None:
    evidence = evidence_of()
    fitted, _ = built(ClassMeans(), evidence, AtSite(site="L2.ln1_out"))
    positive, negative = unit_means(evidence.train, Site(2, "ln1_out"))
    middle = (positive + negative) / 2
    on_plane = projector(fitted.plane)
    torch.testing.assert_close(on_plane @ middle, middle, rtol=0, atol=1e-6)
    assert float(fitted.plane.b2.double() @ middle) > 0
    for name, mean in (("positive", positive), ("negative", negative)):
        outside = float((mean - on_plane @ mean).norm())
        assert fitted.report[f"{name}_outside"] == pytest.approx(outside, abs=1e-6)
        assert 1e-4 < outside < 0.2 * float(mean.norm())


def test_the_class_mean_plane_holds_both_means_of_activations_of_equal_length() -> None:
    evidence = evidence_of()
    units = [
        h / h.norm(dim=-1, keepdim=True) for h in (evidence.train.positive, evidence.train.negative)
    ]
    unit = Evidence(made_activations(*units, SITES))
    fitted, _ = built(ClassMeans(), unit)
    assert max(fitted.report.values()) < 1e-6


def test_a_consensus_has_no_class_means() -> None:
    with pytest.raises(
        UserError, match=r"ClassMeans\(\) needs a direction that belongs to a site.*AtSite"
    ):
        built(ClassMeans(), evidence_of(), Consensus())


def test_class_means_along_the_direction_span_no_plane() -> None:
    axis = torch.eye(3)[0]
    positive = (axis * torch.tensor([[1.0], [2.0]])).unsqueeze(1)
    evidence = Evidence(made_activations(positive, -3 * positive[:1], SITES[:1]))
    direction = GlobalDirection(axis, SITES[0], torch.ones(1))
    candidates = candidates_of(0)
    with pytest.raises(UserError, match="the two vectors are parallel; a plane needs two"):
        ClassMeans().build(direction, candidates, evidence)
