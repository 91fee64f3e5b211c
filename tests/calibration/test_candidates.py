"""Directions and the plane, on known geometry and on the published calibrations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from ss_lens import Activations, Plane, Site, UserError, calibrate
from ss_lens.calibration.candidates import (
    Candidates,
    cosine_matrix,
    first_principal_component,
    global_direction,
    mean_cosine,
)
from ss_lens.calibration.directions import difference_of_means
from tests.conftest import made_activations, shared_file

SITES = tuple(Site(layer, s) for layer in range(3) for s in ("ln1_out", "ln2_out"))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def candidates_of(directions: Tensor, valid: Tensor | None = None) -> Candidates:
    unit = directions / directions.norm(dim=-1, keepdim=True)
    valid = torch.ones(len(unit), dtype=torch.bool) if valid is None else valid
    sites = tuple(Site(i, "ln1_out") for i in range(len(unit)))
    lengths = torch.where(valid, directions.norm(dim=-1), 0)
    return Candidates(torch.where(valid.unsqueeze(-1), unit, 0), valid, sites, lengths)


def separated(gap: Tensor, n: int = 10, seed: int = 0) -> Activations:
    """Both classes are the same cloud, moved apart by exactly ``gap [site, d_model]``."""
    cloud = 5 + noise(n, *gap.shape, seed=seed)
    return made_activations(cloud + gap / 2, cloud - gap / 2, SITES[: len(gap)])


# --- candidate directions ------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_difference_of_means_recovers_the_gap_between_the_classes(seed: int) -> None:
    gap = noise(6, 16, seed=seed)
    found = difference_of_means(separated(gap, seed=seed + 1))
    expected = gap / gap.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.directions, expected, rtol=0, atol=1e-5)
    assert found.valid.all()
    assert found.excluded == ()


def test_directions_point_from_negative_to_positive() -> None:
    gap = noise(6, 16)
    forward, backward = separated(gap), separated(-gap)
    there, back = (difference_of_means(acts).directions for acts in (forward, backward))
    torch.testing.assert_close(there, -back, rtol=0, atol=1e-5)


def test_classes_of_different_size_are_averaged_separately() -> None:
    positive, negative = noise(3, 6, 16), noise(31, 6, 16, seed=1)
    got = difference_of_means(made_activations(positive, negative, SITES)).directions
    gap = positive.double().mean(0) - negative.double().mean(0)
    expected = (gap / gap.norm(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_site_where_the_means_agree_is_excluded_and_never_divided(scale: float) -> None:
    gap = noise(6, 16)
    gap[0] = 0
    acts = separated(gap)
    rounding = 1e-7 * noise(16, seed=3)  # what a forward pass of different batches leaves
    positive, negative = scale * acts.positive, scale * acts.negative
    positive[:, 0], negative[:, 0] = scale * (5 + rounding), scale * 5.0
    found = difference_of_means(made_activations(positive, negative, SITES))
    assert found.excluded == (SITES[0],)
    assert torch.equal(found.directions[0], torch.zeros(16))
    torch.testing.assert_close(found.directions[1:].norm(dim=-1), torch.ones(5))


def test_a_small_gap_above_rounding_is_kept() -> None:
    assert difference_of_means(separated(1e-2 * noise(6, 16))).valid.all()


def test_identical_classes_have_no_direction_anywhere() -> None:
    cloud = noise(10, 6, 16)
    with pytest.raises(
        UserError, match=r"'made-up' have the same mean activation at every site.*\(position -1\)"
    ):
        difference_of_means(made_activations(cloud, cloud.flip(0), SITES))


# --- the global direction ------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(3, 9))
def test_global_direction_is_the_brute_force_maximum(seed: int, n: int) -> None:
    vectors = noise(n, 8, seed=seed) + noise(8, seed=seed + 1)
    unit = (vectors / vectors.norm(dim=-1, keepdim=True)).double().numpy()
    means = [np.mean([unit[i] @ unit[j] for j in range(n) if j != i]) for i in range(n)]
    made = candidates_of(vectors)
    assert global_direction(made) == int(np.argmax(means))
    np.testing.assert_allclose(mean_cosine(made), means, atol=1e-6)


def test_an_excluded_site_is_never_chosen_and_never_counted() -> None:
    vectors = noise(5, 8) - 3 * torch.eye(8)[0]
    valid = torch.tensor([False, True, True, True, False])
    with_holes, without = candidates_of(vectors, valid), candidates_of(vectors[1:4])
    assert global_direction(with_holes) == 1 + global_direction(without)
    agreement = mean_cosine(with_holes)
    assert agreement[[0, 4]].isnan().all()
    torch.testing.assert_close(agreement[1:4], mean_cosine(without))


def test_candidates_that_all_disagree_still_beat_an_excluded_site() -> None:
    """The excluded row is zero, whose cosine of 0 would win against negative ones."""
    triangle = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)], [1.0, 0.0]])
    made = candidates_of(triangle, torch.tensor([True, True, True, False]))
    assert global_direction(made) in (0, 1, 2)


def test_the_only_candidate_is_the_global_direction() -> None:
    made = candidates_of(noise(3, 8), torch.tensor([False, True, False]))
    assert global_direction(made) == 1
    assert mean_cosine(made)[1] == 1


def test_cosine_matrix_is_symmetric_with_ones_and_holes() -> None:
    matrix = cosine_matrix(candidates_of(noise(4, 8), torch.tensor([True, False, True, True])))
    assert torch.equal(matrix.isnan().any(0), torch.tensor([True, True, True, True]))
    assert matrix[1].isnan().all()
    kept = matrix[[0, 2, 3]][:, [0, 2, 3]]
    torch.testing.assert_close(kept, kept.T, rtol=0, atol=0)
    torch.testing.assert_close(kept.diagonal(), torch.ones(3))
    vectors = candidates_of(noise(4, 8)).directions
    assert float(kept[0, 1]) == pytest.approx(float(vectors[0] @ vectors[2]), abs=1e-6)


# --- the plane -----------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(3, 12))
def test_first_principal_component_equals_numpy_svd_with_the_sign_rule(seed: int, n: int) -> None:
    made = candidates_of(noise(n, 20, seed=seed))
    rows = made.directions.double().numpy()
    _, s, vh = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    component = first_principal_component(made)
    largest = float(component[component.abs().argmax()])
    assert largest > 0
    assert float(component.norm()) == pytest.approx(1, abs=1e-6)
    if s[0] / s[1] > 1.01:  # else the component is hardly determined
        oracle = vh[0] * np.sign(vh[0][np.abs(vh[0]).argmax()])
        np.testing.assert_allclose(component, oracle, atol=1e-5)


def test_the_sign_of_the_component_ignores_the_sign_of_the_candidates() -> None:
    vectors = noise(7, 20)
    one, other = (first_principal_component(candidates_of(sign * vectors)) for sign in (1, -1))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_component_uses_only_sites_with_a_direction() -> None:
    vectors = noise(5, 20)
    holes = candidates_of(vectors, torch.tensor([False, True, True, True, True]))
    torch.testing.assert_close(
        first_principal_component(holes), first_principal_component(candidates_of(vectors[1:]))
    )


@pytest.mark.parametrize("n_valid", [1, 2])
def test_fewer_than_three_candidates_span_no_plane(n_valid: int) -> None:
    valid = torch.arange(4) < n_valid
    with pytest.raises(UserError, match=rf"at least 3 sites with a direction. got {n_valid}\. Cap"):
        first_principal_component(candidates_of(noise(4, 8), valid))


# --- the steps together and a negative control ----------------------------------------------------


def test_shuffled_labels_lose_the_direction() -> None:
    """Negative control: the gap is found because it is between the classes."""
    gap = 0.8 * noise(6, 64)
    acts = separated(gap, n=60)
    rows = torch.cat((acts.positive, acts.negative))[
        torch.randperm(120, generator=torch.Generator().manual_seed(0))
    ]
    shuffled = made_activations(rows[:60], rows[60:], SITES)
    truth = gap / gap.norm(dim=-1, keepdim=True)
    agreement = (difference_of_means(shuffled).directions * truth).sum(-1).abs()
    assert (difference_of_means(acts).directions * truth).sum(-1).min() > 0.99
    assert agreement.max() < 0.95


def test_calibrate_joins_the_steps() -> None:
    shared = noise(16, seed=9)
    gap = torch.stack([shared + 0.3 * noise(16, seed=i) for i in range(6)])
    cloud = noise(10, 6, 16) * 0.1
    made = calibrate(made_activations(cloud + gap, cloud - gap, SITES))
    oracle = difference_of_means(made_activations(cloud + gap, cloud - gap, SITES))
    chosen = global_direction(oracle)
    assert made.direction_site == SITES[chosen]
    torch.testing.assert_close(made.plane.b1, oracle.directions[chosen], rtol=0, atol=1e-6)
    torch.testing.assert_close(made.directions, oracle.directions)
    expected = Plane.from_span(oracle.directions[chosen], first_principal_component(oracle))
    torch.testing.assert_close(made.plane.b2, expected.b2)
    assert made.selected_sites == SITES
    table = made.selection.table
    assert table["positive"].min() > 0 > table["negative"].max()


# --- parity with the authors' published calibrations ---------------------------------------------

STREAM_OF = {
    "llama": {"input_layernorm": "ln1_out", "post_attention_layernorm": "ln2_out"},
    "gemma": {
        "input_layernorm": "ln1_out",
        "post_attention_layernorm": "ln1_post_out",
        "pre_feedforward_layernorm": "ln2_out",
        "post_feedforward_layernorm": "ln2_post_out",
    },
}
# Measured: 1 − cos of b1 is 6e-7 at most and of b2 1.3e-4 at most; the published are in bfloat16.
PUBLISHED = {
    "Llama-3.2-1B-Instruct": ("L12.ln1_out", 0.99999, 0.9999),
    "Qwen2.5-1.5B-Instruct": ("L22.ln1_out", 0.9999999, 0.99995),
    "gemma-2-2b-it": ("L20.ln1_out", 0.9999999, 0.9998),
}


def published(model: str) -> tuple[Candidates, dict[str, Any], Tensor]:
    """Candidates as the authors published them, in float32; their choice; their basis."""
    streams = STREAM_OF["gemma" if "gemma" in model else "llama"]
    found, plane = (
        torch.load(
            shared_file(f"reference/{model}/{name}.pt"), weights_only=True, map_location="cpu"
        )
        for name in ("directions", "plane")
    )
    rows, sites = [], []
    for name, vector in found["candidates"].items():
        _, _, layer, norm = name.split(".")
        sites.append(Site(int(layer), streams[norm]))  # type: ignore[arg-type]
        rows.append(vector.double())
    stacked = torch.stack(rows)
    length = stacked.norm(dim=-1, keepdim=True)
    valid = length.squeeze(-1) > 0.5
    unit = torch.where(valid.unsqueeze(-1), stacked / length.clamp(min=0.5), 0.0)
    basis = torch.stack([b.double() / b.double().norm() for b in plane["basis"]])
    lengths = torch.where(valid, torch.nan, 0.0)  # they are published normalised
    return Candidates(unit.float(), valid, tuple(sites), lengths), found, basis


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_direction_and_plane_are_found_again(model: str) -> None:
    site, least_b1, least_b2 = PUBLISHED[model]
    made, found, basis = published(model)
    chosen = global_direction(made)
    names = list(found["candidates"])
    assert names[chosen] == found["selected_layer"]
    assert str(made.sites[chosen]) == site
    assert made.sites == tuple(sorted(made.sites))
    assert [str(s) for s in made.excluded] == ["L0.ln1_out"]
    plane = Plane.from_span(made.directions[chosen], first_principal_component(made))
    assert float(plane.b1.double() @ basis[0]) >= least_b1
    assert float(plane.b2.double() @ basis[1]) >= least_b2


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_random_second_axis_is_far_from_the_published_one(model: str) -> None:
    """Negative control of the parity above."""
    made, _, basis = published(model)
    b1 = made.directions[global_direction(made)]
    other = Plane.from_span(b1, noise(len(b1)))
    assert abs(float(other.b2.double() @ basis[1])) < 0.1


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_basis_is_not_orthonormal_enough_for_a_plane(model: str) -> None:
    plane = torch.load(
        shared_file(f"reference/{model}/plane.pt"), weights_only=True, map_location="cpu"
    )
    b1, b2 = (b.float() for b in plane["basis"])
    with pytest.raises(UserError, match=r"not orthonormal: it deviates by [1-7]\.\d\de-03"):
        Plane(b1, b2)
    assert abs(float(Plane.from_span(b1, b2).b2 @ b2)) > 0.99
