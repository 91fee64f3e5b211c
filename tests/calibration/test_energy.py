"""Random planes with the in-plane energy of the method's own: the control of the edit's size."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from ss_lens import Evidence, MatchedRandomPlane, RotateBy, Site, UserError, calibrate
from ss_lens.calibration.candidates import Candidates
from ss_lens.calibration.global_direction import GlobalDirection
from ss_lens.calibration.plane_search import energy
from ss_lens.calibration.plane_search.energy import (
    Spectrum,
    in_plane_energy,
    matched_draw,
    unit_rows,
)
from ss_lens.calibration.planes import PC1
from ss_lens.models.sites import Stream
from tests.calibration.test_planes import SITES, D, built, evidence_of, noise
from tests.conftest import made_activations

SOME = "L1.ln1_out,L2.ln2_out"


def shares(evidence: Evidence, method: object, sites: str | None = None) -> float:
    """The mean share of the activations in the method's plane, by its definition."""
    basis = built(method, evidence)[0].plane.basis.double()
    acts, found = evidence.train, []
    for site in SITES if sites is None else map(Site.parse, sites.split(",")):
        for h in acts.at(site):
            p = h.double() @ basis.T
            found += ((p.norm(dim=-1) / h.double().norm(dim=-1)) ** 2).tolist()
    return float(np.mean(found))


@pytest.mark.parametrize("sites", [None, SOME])
@pytest.mark.parametrize("seed", range(4))
def test_the_energy_is_that_of_the_methods_plane_to_one_per_cent(
    seed: int, sites: str | None
) -> None:
    evidence, method = evidence_of(seed), MatchedRandomPlane(seed=seed, sites=sites)
    own, report = shares(evidence, PC1(), sites), built(method, evidence)[0].report
    assert shares(evidence, method, sites) == pytest.approx(own, rel=0.01)
    assert report["energy"] == pytest.approx(own, rel=0.01)
    assert report["target_energy"] == pytest.approx(own)
    assert report["isotropic_energy"] == pytest.approx(2 / D)


def test_the_edit_of_a_matched_plane_is_as_large_as_the_methods() -> None:
    """The root mean square of what a rotation changes, relative to the activation."""
    evidence = evidence_of()
    rows = unit_rows(evidence.train)

    def change(method: object) -> float:
        turned = RotateBy(120).apply(rows, built(method, evidence)[0].plane)
        return float((turned - rows).square().sum(dim=-1).mean().sqrt())

    assert change(MatchedRandomPlane(seed=3)) == pytest.approx(change(PC1()), rel=0.01)


@given(st.integers(0, 500), st.floats(0.02, 0.95))
def test_any_energy_between_the_least_and_the_most_is_reached(seed: int, place: float) -> None:
    """Also with fewer rows than dimensions, and below the energy of a uniform draw."""
    rows = unit_rows(evidence_of(seed, n=1).train)[:10]
    spectrum = Spectrum.of(rows)
    least, most = float(spectrum.values[:2].sum()), float(spectrum.values[-2:].sum())
    target = least + place * (most - least)
    drawn = matched_draw(spectrum, target, np.random.default_rng(seed))
    assert in_plane_energy(rows, drawn.basis) == pytest.approx(target, rel=0.01)
    torch.testing.assert_close(drawn.basis @ drawn.basis.T, torch.eye(2).double())


def test_draws_of_a_matched_plane_hardly_agree_with_the_direction() -> None:
    evidence = evidence_of()
    cosines = [
        abs(float(fitted.plane.b1.double() @ direction))
        for fitted, direction in (built(MatchedRandomPlane(seed=s), evidence) for s in range(40))
    ]
    assert np.mean(cosines) < 0.6


def test_many_draws_share_one_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, calls = evidence_of(77), []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(1) or eigh(matrix))
    for seed in range(6):
        built(MatchedRandomPlane(seed=seed), evidence)
    assert len(calls) == 1
    kept = len(energy._targets)
    built(MatchedRandomPlane(seed=0, sites=SOME), evidence)
    assert len(calls) == 2
    assert len(energy._targets) == kept  # the last alone
    del evidence
    gc.collect()
    assert len(energy._targets) == kept - 1  # and no longer than its activations


def test_draws_of_a_whole_calibration_read_the_activations_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each calibration restricts what was captured to its streams, in tensors of its own."""
    streams: tuple[Stream, ...] = ("ln1_out", "ln2_out", "resid_post")
    sites = tuple(Site(layer, stream) for layer in range(3) for stream in streams)
    clouds = (noise(6, len(sites), D, seed=s) for s in range(2))
    acts, read = made_activations(*clouds, sites), []
    monkeypatch.setattr(energy, "unit_rows", lambda *a: read.append(a) or unit_rows(*a))

    def basis(seed: int) -> torch.Tensor:
        return calibrate(acts, plane=MatchedRandomPlane(seed=seed), rule="uniform").plane.basis

    together = [basis(seed) for seed in range(4)]
    assert len(read) == 1
    for seed, drawn in enumerate(together):
        energy._targets.clear()
        assert torch.equal(basis(seed), drawn)
    other = made_activations(acts.positive.flip(0) * 2, acts.negative + 1, sites)
    method = MatchedRandomPlane(seed=0)
    assert not torch.equal(calibrate(other, plane=method, rule="uniform").plane.b1, together[0][0])


def test_an_energy_out_of_reach_is_refused() -> None:
    spectrum = Spectrum.of(unit_rows(evidence_of().train))
    for target in (0.0, float(spectrum.values[-2:].sum()) * 1.05):
        with pytest.raises(UserError, match=r"no random plane has the in-plane energy .* RandomPl"):
            matched_draw(spectrum, target, np.random.default_rng(0))


def test_an_activation_without_a_length_is_refused() -> None:
    cloud = noise(4, 3, D)
    cloud[0, 0] = 0
    evidence = Evidence(made_activations(cloud, noise(4, 3, D, seed=1), SITES[:3]))
    axes = torch.eye(D)[:3]
    candidates = Candidates(axes, torch.ones(3, dtype=torch.bool), SITES[:3], torch.ones(3))
    direction = GlobalDirection(axes[0], SITES[0], torch.ones(3))
    with pytest.raises(UserError, match="an activation is zero or not finite"):
        MatchedRandomPlane(seed=0).build(direction, candidates, evidence)


def test_equal_sites_are_equal_values_and_unknown_ones_are_refused() -> None:
    assert MatchedRandomPlane(seed=1, sites="L2.ln2_out, L1.ln1_out").sites == SOME
    with pytest.raises(UserError, match=r"L9\.ln1_out is not a calibrated site"):
        built(MatchedRandomPlane(seed=1, sites="L9.ln1_out"), evidence_of())
    with pytest.raises(UserError, match="sites must be text like"):
        MatchedRandomPlane(seed=1, sites="")
