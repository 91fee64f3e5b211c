"""Rotations and edits in a plane, against dense matrices in float64 and their own algebra."""

from __future__ import annotations

import doctest
import importlib
import inspect
import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from ss_lens import Plane, UserError
from ss_lens.geometry.maps import (
    ablate,
    add,
    reflect,
    rotate_by,
    rotate_scale,
    rotate_to,
    rotate_to_if_aligned,
    rotate_toward,
    set_angle,
)
from ss_lens.geometry.plane import in_plane

ANGLES = st.floats(-20, 20)
SEEDS = st.integers(0, 2**31)
WIDTHS = st.sampled_from([2, 3, 16, 257])

IN_PLANE: dict[str, Callable[[Tensor, Plane], Tensor]] = {
    "rotate_by": lambda h, plane: rotate_by(h, plane, 0.7),
    "rotate_scale": lambda h, plane: rotate_scale(h, plane, 0.7, 1.5),
    "rotate_to": lambda h, plane: rotate_to(h, plane, 0.7),
    "rotate_to_if_aligned": lambda h, plane: rotate_to_if_aligned(h, plane, 0.7),
    "set_angle": lambda h, plane: set_angle(h, plane, 0.7, 3.0),
    "add": lambda h, plane: add(h, plane, 2.5),
    "ablate": ablate,
    "reflect": reflect,
}
MAPS = {**IN_PLANE, "rotate_toward": lambda h, plane: rotate_toward(h, plane, 0.7)}
every_map = pytest.mark.parametrize("name", MAPS)
every_in_plane_map = pytest.mark.parametrize("name", IN_PLANE)


def plane64(d: int, seed: int) -> Plane:
    """A random plane, orthonormal to float64 precision."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, 2, generator=generator, dtype=torch.float64))
    return Plane(q[:, 0].contiguous(), q[:, 1].contiguous())


def activations(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def dense(plane: Plane, block: list[list[float]]) -> Tensor:
    """The d × d matrix that applies ``block`` in the plane and the identity outside it."""
    basis = plane.basis.double()
    inside = torch.tensor(block, dtype=torch.float64)
    return torch.eye(basis.shape[1], dtype=torch.float64) + basis.T @ (
        (inside - torch.eye(2, dtype=torch.float64)) @ basis
    )


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@given(WIDTHS, SEEDS, ANGLES)
def test_rotation_equals_the_dense_matrix(d: int, seed: int, angle: float) -> None:
    plane, h = plane64(d, seed), activations(5, d, seed=seed)
    cos, sin = math.cos(angle), math.sin(angle)
    expected = h @ dense(plane, [[cos, -sin], [sin, cos]]).T
    assert largest(rotate_by(h, plane, angle) - expected) < 1e-12


@given(WIDTHS, SEEDS)
def test_ablation_equals_the_dense_projection(d: int, seed: int) -> None:
    plane, h = plane64(d, seed), activations(5, d, seed=seed)
    assert largest(ablate(h, plane) - h @ dense(plane, [[0.0, 0.0], [0.0, 1.0]]).T) < 1e-12


@example(2, 613, 1.0, 1.0)  # a token half a degree from b1
@given(WIDTHS, SEEDS, ANGLES, st.floats(1e-3, 1e3))
def test_rotation_keeps_the_norm_in_float32(d: int, seed: int, angle: float, scale: float) -> None:
    loose = plane64(d, seed)
    plane = Plane.from_span(loose.b1.float(), loose.b2.float())
    h = scale * activations(7, d, seed=seed, dtype=torch.float32)
    for turn in (rotate_by, rotate_to, rotate_toward):
        turned = turn(h, plane, angle)
        before, after = h.double().norm(dim=-1), turned.double().norm(dim=-1)
        assert largest(after / before - 1) < 1e-6


@given(WIDTHS, SEEDS, ANGLES)
def test_rotation_keeps_the_norm_in_bfloat16(d: int, seed: int, angle: float) -> None:
    loose = plane64(d, seed)
    plane = Plane.from_span(loose.b1, loose.b2)
    h = activations(7, d, seed=seed, dtype=torch.bfloat16)
    before, after = h.double().norm(dim=-1), rotate_by(h, plane, angle).double().norm(dim=-1)
    assert largest(after / before - 1) < 5e-3


@given(SEEDS, ANGLES, ANGLES)
def test_angles_add_and_invert(seed: int, first: float, second: float) -> None:
    plane, h = plane64(16, seed), activations(3, 16, seed=seed)
    once = rotate_by(h, plane, first)
    twice = rotate_by(once, plane, second)
    assert largest(twice - rotate_by(h, plane, first + second)) < 1e-12
    assert largest(rotate_by(once, plane, -first) - h) < 1e-12


@given(SEEDS, ANGLES)
def test_a_full_turn_changes_nothing(seed: int, angle: float) -> None:
    plane, h = plane64(16, seed), activations(3, 16, seed=seed)
    for turn in (rotate_by, rotate_to, rotate_to_if_aligned, rotate_toward, set_angle):
        assert largest(turn(h, plane, angle) - turn(h, plane, angle + 2 * math.pi)) < 1e-12


def test_a_half_turn_changes_something() -> None:
    plane, h = plane64(16, 0), activations(3, 16, seed=0)
    for turn in (rotate_by, rotate_to, rotate_toward, set_angle):
        assert largest(turn(h, plane, 0.3) - turn(h, plane, 0.3 + math.pi)) > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0.0), torch.zeros(4)])
def test_rotation_by_zero_is_identity(dtype: torch.dtype, zero: float | Tensor) -> None:
    h = activations(4, 3, 16, seed=0, dtype=dtype)
    for turned in (
        rotate_by(h, plane64(16, 0), zero),
        rotate_scale(h, plane64(16, 0), zero, 1),
        rotate_scale(h, plane64(16, 0), zero, torch.ones(4)),
        rotate_toward(h, plane64(16, 0), zero),
    ):
        assert torch.equal(turned, h)


@every_in_plane_map
@given(seed=SEEDS)
def test_the_complement_of_the_plane_is_untouched(name: str, seed: int) -> None:
    plane, h = plane64(16, seed), activations(4, 16, seed=seed)
    outside = dense(plane, [[0.0, 0.0], [0.0, 0.0]])
    moved = IN_PLANE[name](h, plane)
    assert largest((moved - h) @ outside) < 1e-12
    assert name == "rotate_to_if_aligned" or largest(moved - h) > 1e-3


@every_map
@given(seed=SEEDS)
def test_a_change_of_basis_commutes_with_every_map(name: str, seed: int) -> None:
    plane, h = plane64(16, seed), activations(4, 16, seed=seed)
    change, _ = torch.linalg.qr(activations(16, 16, seed=seed + 7))
    changed = Plane(change @ plane.b1, change @ plane.b2)
    assert largest(MAPS[name](h @ change.T, changed) - MAPS[name](h, plane) @ change.T) < 1e-11


@every_map
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_maps_work_out_of_place_and_keep_dtype_and_shape(name: str, dtype: torch.dtype) -> None:
    plane, h = plane64(16, 3), activations(4, 2, 16, seed=3, dtype=dtype)
    before = h.clone()
    moved = MAPS[name](h, plane)
    assert torch.equal(h, before)
    assert moved.data_ptr() != h.data_ptr()
    assert (moved.dtype, moved.shape) == (h.dtype, h.shape)


@every_map
def test_low_precision_is_computed_in_float32(name: str) -> None:
    """The bfloat16 result is the float32 result, rounded once."""
    plane, h = plane64(64, 5), activations(4, 64, seed=5, dtype=torch.bfloat16)
    rounded_once = MAPS[name](h.float(), plane).bfloat16()
    assert torch.equal(MAPS[name](h, plane), rounded_once)


@every_map
def test_maps_accept_a_single_vector_and_an_empty_batch(name: str) -> None:
    plane, h = plane64(16, 3), activations(4, 16, seed=3)
    assert largest(MAPS[name](h[0], plane) - MAPS[name](h, plane)[0]) < 1e-14
    assert MAPS[name](h[:0], plane).shape == (0, 16)


@settings(max_examples=15)
@given(SEEDS, st.lists(ANGLES, min_size=3, max_size=3))
def test_one_angle_per_row_equals_a_loop(seed: int, angles: list[float]) -> None:
    plane, h = plane64(16, seed), activations(3, 4, 16, seed=seed)
    rows = torch.tensor(angles, dtype=torch.float64)
    for turn in (rotate_by, rotate_to, rotate_to_if_aligned, rotate_toward, set_angle, add):
        looped = torch.stack([turn(h[i], plane, angle) for i, angle in enumerate(angles)])
        assert largest(turn(h, plane, rows) - looped) < 1e-12


def test_angles_per_row_are_not_rounded_to_the_precision_of_the_activations() -> None:
    plane, h = plane64(64, 0), activations(3, 64, seed=0, dtype=torch.bfloat16)
    angles = [1.2345678, -2.3456789, 3.0123456]
    looped = torch.stack([rotate_by(h[i], plane, angle) for i, angle in enumerate(angles)])
    assert torch.equal(rotate_by(h, plane, torch.tensor(angles)), looped)


@pytest.mark.parametrize("shape", [(4, 16), (16,), (2, 3, 16)])
def test_a_wrong_number_of_strengths_is_rejected(shape: tuple[int, ...]) -> None:
    h = activations(*shape, seed=0)
    with pytest.raises(UserError, match=r"got 3 strengths for activations of shape .* per row"):
        rotate_by(h, plane64(16, 0), torch.zeros(3))


@given(SEEDS, ANGLES, ANGLES)
def test_rotate_to_is_idempotent_and_forgets_the_phase(
    seed: int, angle: float, earlier: float
) -> None:
    plane, h = plane64(16, seed), activations(3, 16, seed=seed)
    once = rotate_to(h, plane, angle)
    assert largest(rotate_to(once, plane, angle) - once) < 1e-12
    assert largest(rotate_to(rotate_by(h, plane, earlier), plane, angle) - once) < 1e-11
    assert largest(once.norm(dim=-1) - h.norm(dim=-1)) < 1e-12


@given(SEEDS, st.floats(-math.pi + 1e-3, math.pi - 1e-3))
def test_rotate_to_sets_the_phase_and_keeps_the_radius(seed: int, angle: float) -> None:
    plane, h = plane64(16, seed), activations(3, 16, seed=seed)
    before, after = in_plane(h, plane), in_plane(rotate_to(h, plane, angle), plane)
    assert largest(torch.atan2(after[:, 1], after[:, 0]) - angle) < 1e-10
    assert largest(after.norm(dim=-1) - before.norm(dim=-1)) < 1e-12


@given(SEEDS, ANGLES)
def test_rotate_to_if_aligned_acts_only_where_b1_is_positive(seed: int, angle: float) -> None:
    plane, h = plane64(16, seed), activations(40, 16, seed=seed)
    aligned = h @ plane.b1 > 0
    assert 0 < aligned.sum() < 40
    turned = rotate_to_if_aligned(h, plane, angle)
    assert torch.equal(turned[~aligned], h[~aligned])
    assert largest(turned[aligned] - rotate_to(h, plane, angle)[aligned]) < 1e-14


def test_rotate_to_if_aligned_leaves_an_activation_exactly_on_the_border() -> None:
    plane = Plane(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    border = torch.tensor([[0.0, 2.0, 1.0]])
    assert torch.equal(rotate_to_if_aligned(border, plane, 1.0), border)


@given(SEEDS, ANGLES, st.floats(0, 50))
def test_set_angle_gives_every_activation_the_same_in_plane_part(
    seed: int, angle: float, magnitude: float
) -> None:
    plane, h = plane64(16, seed), activations(5, 16, seed=seed)
    target = magnitude * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    assert largest(in_plane(set_angle(h, plane, angle, magnitude), plane) - target) < 1e-12


def test_set_angle_does_not_keep_the_norm() -> None:
    plane, h = plane64(16, 0), activations(5, 16, seed=0)
    change = set_angle(h, plane, 1.0, 5.0).norm(dim=-1) / h.norm(dim=-1)
    assert float((change - 1).abs().min()) > 0.01


@given(SEEDS, st.floats(-100, 100))
def test_add_shifts_along_b1_alone(seed: int, alpha: float) -> None:
    plane, h = plane64(16, seed), activations(5, 16, seed=seed)
    assert largest(add(h, plane, alpha) - (h + alpha * plane.b1)) < 1e-11


@given(SEEDS)
def test_ablation_is_idempotent_linear_and_empties_b1(seed: int) -> None:
    plane = plane64(16, seed)
    g, h = activations(2, 5, 16, seed=seed).unbind(0)
    once = ablate(h, plane)
    assert largest(once @ plane.b1) < 1e-12
    assert largest(once @ plane.b2 - h @ plane.b2) < 1e-12
    assert largest(ablate(once, plane) - once) < 1e-12
    assert largest(ablate(2 * g - 3 * h, plane) - (2 * ablate(g, plane) - 3 * once)) < 1e-11


@given(SEEDS)
def test_an_activation_outside_the_plane_has_no_phase_to_turn(seed: int) -> None:
    """The radius is zero: rotations must return it unchanged, not NaN."""
    plane = Plane(torch.eye(4)[0], torch.eye(4)[1])
    h = activations(5, 4, seed=seed, dtype=torch.float32) * torch.tensor([0.0, 0.0, 1.0, 1.0])
    for turn in (rotate_by, rotate_to, rotate_to_if_aligned):
        assert torch.equal(turn(h, plane, 2.0), h)
    assert torch.equal(rotate_scale(h, plane, 2.0, 3.0), h)


@given(SEEDS, ANGLES, st.floats(0, 4))
def test_rotate_scale_multiplies_the_radius_of_what_rotate_by_turns(
    seed: int, angle: float, scale: float
) -> None:
    plane, h = plane64(16, seed), activations(5, 16, seed=seed)
    expected = scale * in_plane(rotate_by(h, plane, angle), plane)
    assert largest(in_plane(rotate_scale(h, plane, angle, scale), plane) - expected) < 1e-12


@settings(max_examples=15)
@given(SEEDS, st.lists(ANGLES, min_size=3, max_size=3))
def test_angles_and_scales_per_row_combine_with_one_for_all(seed: int, angles: list[float]) -> None:
    plane, h = plane64(16, seed), activations(3, 4, 16, seed=seed)
    scales = [0.0, 1.0, 2.5]
    for theta, rho in ((angles, scales), (angles, [1.5] * 3), ([0.4] * 3, scales)):
        looped = torch.stack([rotate_scale(h[i], plane, theta[i], rho[i]) for i in range(3)])
        given_as = [
            values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=torch.float64)
            for values in (theta, rho)
        ]
        assert largest(rotate_scale(h, plane, *given_as) - looped) < 1e-12


@given(SEEDS)
def test_reflection_reverses_b1_and_undoes_itself(seed: int) -> None:
    plane, h = plane64(16, seed), activations(5, 16, seed=seed)
    once = reflect(h, plane)
    assert largest(once - (h - 2 * torch.outer(h @ plane.b1, plane.b1))) < 1e-12
    assert largest(reflect(once, plane) - h) < 1e-12


def angle_to_b1(h: Tensor, plane: Plane) -> Tensor:
    cosine = h @ plane.b1 / h.norm(dim=-1)
    return torch.arccos(cosine.clamp(-1, 1))


@given(SEEDS, st.floats(-0.5, 0.5))
def test_rotate_toward_lessens_the_angle_to_b1_by_what_was_asked(seed: int, angle: float) -> None:
    plane, h = plane64(64, seed), activations(5, 64, seed=seed)
    before = angle_to_b1(h, plane)
    assert float((before - math.pi / 2).abs().max()) < 1  # so that no turn crosses b1
    after = angle_to_b1(rotate_toward(h, plane, angle), plane)
    assert largest(after - (before - angle)) < 1e-12


@given(SEEDS)
def test_rotate_toward_lands_on_b1_and_then_goes_past_it(seed: int) -> None:
    plane, h = plane64(16, seed), activations(1, 16, seed=seed)
    phi = float(angle_to_b1(h, plane))
    assert largest(rotate_toward(h, plane, phi) - h.norm() * plane.b1) < 1e-11
    mirrored = 2 * (h @ plane.b1) * plane.b1 - h
    assert largest(rotate_toward(h, plane, 2 * phi) - mirrored) < 1e-11
    assert largest(rotate_toward(h, plane, math.pi) + h) < 1e-11


def test_rotate_toward_turns_back_what_is_already_past_b1() -> None:
    """Why angles add only as long as the first turn stops short of b1."""
    plane = Plane(torch.eye(3)[0], torch.eye(3)[1])
    h = torch.tensor([[math.cos(0.1), math.sin(0.1), 0.0]])
    past = rotate_toward(h, plane, 0.3)
    assert float(past[0, 1]) == pytest.approx(math.sin(-0.2), abs=1e-6)
    assert largest(rotate_toward(past, plane, 0.3) - h) < 1e-6


@given(SEEDS)
def test_rotate_toward_does_not_use_b2(seed: int) -> None:
    plane, h = plane64(16, seed), activations(5, 16, seed=seed)
    other = Plane.from_span(plane.b1, activations(16, seed=seed + 3))
    other = Plane(plane.b1, other.b2.double())
    assert torch.equal(rotate_toward(h, plane, 0.7), rotate_toward(h, other, 0.7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factor", [3.0, -0.2, 0.0])
@pytest.mark.parametrize("length", [1.0, 1 + 4e-6])
def test_rotate_toward_leaves_what_is_parallel_to_b1(
    dtype: torch.dtype, factor: float, length: float
) -> None:
    """Also with a basis that is only as orthonormal as it must be."""
    exact = plane64(512, 4)
    plane = Plane(length * exact.b1, exact.b2)
    h = factor * exact.b1.to(dtype).expand(3, -1)
    assert torch.equal(rotate_toward(h, plane, 1.0), h)


def test_rotate_toward_keeps_the_digits_of_a_small_angle_in_float32() -> None:
    plane = Plane(torch.eye(64)[0], torch.eye(64)[1])
    h = torch.zeros(1, 64)
    h[0, 0], h[0, 9] = 1.0, 1e-4
    expected = [math.cos(1e-4 - 0.5), math.sin(1e-4 - 0.5)]
    assert rotate_toward(h, plane, 0.5)[0, [0, 9]].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("slope", [1e-1, 1e-2, 1e-3, 1e-4, 3e-5])
@pytest.mark.parametrize("d", [2, 64, 1024])
def test_rotate_toward_keeps_the_norm_close_to_b1_in_float32(d: int, slope: float) -> None:
    exact = plane64(d, 8)
    plane = Plane(exact.b1.float(), exact.b2.float())
    h = (exact.b1 + slope * exact.b2).float().unsqueeze(0)
    for angle in (0.3, -1.0, math.pi / 2):
        turned = rotate_toward(h, plane, angle)
        assert float(turned.double().norm() / h.double().norm()) == pytest.approx(1, abs=1e-6)
        assert float((turned - h).norm()) > 0.1


@pytest.mark.parametrize("tilt", [1e-3, 0.1])
def test_a_plane_that_is_not_orthonormal_is_rejected_with_its_deviation(tilt: float) -> None:
    with pytest.raises(UserError, match=rf"deviates by {tilt:.2e}.*Plane\.from_span"):
        Plane(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([tilt, math.sqrt(1 - tilt**2), 0.0]))


def test_a_plane_with_a_long_basis_vector_is_rejected() -> None:
    with pytest.raises(UserError, match=r"not orthonormal: it deviates by 3\.00e\+00"):
        Plane(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_plane_that_is_not_finite_is_rejected(bad: float) -> None:
    with pytest.raises(UserError, match="NaN or infinity"):
        Plane(torch.tensor([1.0, 0.0]), torch.tensor([bad, 1.0]))


@given(WIDTHS, SEEDS, st.floats(1e-6, 1e6))
def test_from_span_orthonormalises_and_keeps_plane_and_orientation(
    d: int, seed: int, scale: float
) -> None:
    b1, v = activations(2, d, seed=seed).unbind(0)
    plane = Plane.from_span(scale * b1, v)
    gram = plane.basis.double() @ plane.basis.double().T
    assert largest(gram - torch.eye(2, dtype=torch.float64)) < 1e-6
    assert largest(plane.b1.double() - b1 / b1.norm()) < 1e-6
    assert float(plane.b2.double() @ v) > 0
    inside = (v @ plane.basis.double().T) @ plane.basis.double()
    assert largest(inside - v) < 1e-5 * float(v.norm())


def test_from_span_survives_nearly_parallel_vectors() -> None:
    b1 = activations(256, seed=1)
    v = b1 + 1e-4 * activations(256, seed=2)
    plane = Plane.from_span(b1, v)
    assert abs(float(plane.b1.double() @ plane.b2.double())) < 1e-6


@pytest.mark.parametrize("factor", [1.0, -3.0, 0.0])
def test_from_span_refuses_parallel_vectors_and_zero(factor: float) -> None:
    b1 = activations(8, seed=1)
    with pytest.raises(UserError, match="parallel"):
        Plane.from_span(b1, factor * b1)
    with pytest.raises(UserError, match="b1 is the zero vector"):
        Plane.from_span(0 * b1, b1)


DOCUMENTED = {
    "ss_lens.geometry.maps": 6,
    "ss_lens.models.sites": 1,
    "ss_lens.scoring.coherence": 2,
    "ss_lens.stats.intervals": 1,
    "ss_lens.scoring.refusal": 2,
}


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    """The doctests of a module whose functions jaxtyping wraps, so that doctest passes them by."""
    finder, found = doctest.DocTestFinder(recurse=False), []
    members = [(module.__name__, module)]
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__ and callable(value):
            members.append((name, value))
            if inspect.isclass(value):
                members += [
                    (f"{name}.{key}", inspect.unwrap(getattr(inner, "__func__", inner)))
                    for key, inner in vars(value).items()
                    if callable(getattr(inner, "__func__", inner))
                ]
    for name, value in members:
        found += finder.find(value, name, module=False, globs=dict(vars(module)))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_examples_hold(name: str) -> None:
    tests = examples_of(importlib.import_module(name))
    assert sum(len(test.examples) for test in tests) >= DOCUMENTED[name]
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
