"""Every operator in float64 against an oracle written another way, and the algebra that it claims.

The oracles are numpy, one token at a time. Linear operators are dense matrices ``Q B Qᵀ`` with a
full orthogonal ``Q`` whose first columns are the plane; the others are closed forms in complex
numbers, or rotations of the token's own plane by the same construction.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

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
from ss_lens.geometry.operators import (
    Ablate,
    ActAdd,
    Add,
    Operator,
    Reflect,
    RotateBy,
    RotateScale,
    RotateTo,
    RotateToIfAligned,
    RotateToward,
    SetAngle,
)
from ss_lens.geometry.plane import Plane

TOLERANCE = 1e-12
DEGREES = st.floats(-720, 720)
SEEDS = st.integers(0, 2**31)
WIDTHS = st.sampled_from([3, 16, 257])

Vector = np.ndarray
Oracle = Callable[[Vector, Vector, Vector], Vector]


def full_basis(b1: Vector, b2: Vector) -> np.ndarray:
    """A square orthogonal matrix whose first two columns are the plane."""
    rng = np.random.default_rng(0)
    q, r = np.linalg.qr(np.column_stack((b1, b2, rng.standard_normal((len(b1), len(b1) - 2)))))
    return q * np.sign(np.diag(r))


def block(inside: list[list[float]]) -> Oracle:
    """The dense matrix that acts as ``inside`` in the plane and as the identity outside it."""

    def oracle(h: Vector, b1: Vector, b2: Vector) -> Vector:
        q = full_basis(b1, b2)
        middle = np.eye(len(h))
        middle[:2, :2] = inside
        return q @ middle @ q.T @ h

    return oracle


def rotation_block(degrees: float, scale: float = 1.0) -> Oracle:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return block([[scale * cos, -scale * sin], [scale * sin, scale * cos]])


def complex_form(edit: Callable[[complex], complex]) -> Oracle:
    """The in-plane coordinates as one complex number."""

    def oracle(h: Vector, b1: Vector, b2: Vector) -> Vector:
        z = complex(b1 @ h, b2 @ h)
        outside = h - z.real * b1 - z.imag * b2
        new = edit(z)
        return outside + new.real * b1 + new.imag * b2

    return oracle


def toward(degrees: float) -> Oracle:
    """A dense rotation of the plane of b1 and the token itself, from the token's side to b1."""

    def oracle(h: Vector, b1: Vector, b2: Vector) -> Vector:
        own, _ = np.linalg.qr(np.column_stack((b1, h)))
        second = own[:, 1] * np.sign(own[:, 1] @ h)
        return rotation_block(-degrees)(h, b1, second)

    return oracle


def unit(degrees: float) -> complex:
    return cmath.exp(1j * math.radians(degrees))


CASES: dict[str, Callable[[float, float], tuple[Operator, Oracle]]] = {
    "RotateBy": lambda a, s: (RotateBy(a), rotation_block(a)),
    "RotateScale": lambda a, s: (RotateScale(a, scale=s), rotation_block(a, s)),
    "RotateTo": lambda a, s: (RotateTo(a), complex_form(lambda z: abs(z) * unit(a))),
    "RotateToIfAligned": lambda a, s: (
        RotateToIfAligned(a),
        complex_form(lambda z: abs(z) * unit(a) if z.real > 0 else z),
    ),
    "RotateToward": lambda a, s: (RotateToward(a), toward(a)),
    "SetAngle": lambda a, s: (SetAngle(a, magnitude=s), complex_form(lambda z: s * unit(a))),
    "Add": lambda a, s: (Add(a), complex_form(lambda z: z + a)),
    "ActAdd": lambda a, s: (
        ActAdd(a / 100).bound(1 + s),
        lambda h, b1, b2: h + a / 100 * (1 + s) * b1,
    ),
    "Ablate": lambda a, s: (Ablate(), block([[0, 0], [0, 1]])),
    "Reflect": lambda a, s: (Reflect(), block([[-1, 0], [0, 1]])),
}
every_case = pytest.mark.parametrize("name", CASES)


def test_every_operator_has_an_oracle() -> None:
    assert {*CASES} == {kind.__name__ for kind in Operator.kinds()}


def plane_of(d: int, seed: int) -> Plane:
    q, _ = torch.linalg.qr(normal(d, 2, seed=seed))
    return Plane(q[:, 0].contiguous(), q[:, 1].contiguous())


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def token_by_token(oracle: Oracle, h: Tensor, plane: Plane) -> Tensor:
    b1, b2 = plane.b1.numpy(), plane.b2.numpy()
    return torch.from_numpy(np.stack([oracle(token, b1, b2) for token in h.numpy()]))


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@every_case
@given(d=WIDTHS, seed=SEEDS, degrees=DEGREES, scale=st.floats(0, 4))
@settings(max_examples=25)
def test_the_operator_equals_its_oracle(
    name: str, d: int, seed: int, degrees: float, scale: float
) -> None:
    plane, h = plane_of(d, seed), normal(4, d, seed=seed + 1)
    operator, oracle = CASES[name](degrees, scale)
    expected = token_by_token(oracle, h, plane)
    assert largest(operator.apply(h, plane) - expected) < TOLERANCE * max(1, largest(expected))


def test_the_planes_of_these_tests_stay_in_float64() -> None:
    plane = plane_of(16, 0)
    assert plane.basis.dtype == torch.float64
    gram = plane.basis @ plane.basis.T
    assert largest(gram - torch.eye(2, dtype=torch.float64)) < 1e-15


ROWWISE: dict[str, Callable[..., Operator]] = {
    "RotateBy": RotateBy,
    "RotateScale": lambda rows: RotateScale(rows, scale=np.abs(rows) / 90),
    "RotateTo": RotateTo,
    "RotateToIfAligned": RotateToIfAligned,
    "RotateToward": RotateToward,
    "SetAngle": lambda rows: SetAngle(rows, magnitude=3),
    "Add": Add,
    "ActAdd": lambda rows: ActAdd(rows).bound(0.02),
}


@pytest.mark.parametrize("name", ROWWISE)
@given(seed=SEEDS, strengths=st.lists(DEGREES, min_size=3, max_size=3))
@settings(max_examples=25)
def test_strengths_per_row_equal_a_loop_over_rows(
    name: str, seed: int, strengths: list[float]
) -> None:
    plane, h = plane_of(16, seed), normal(3, 2, 16, seed=seed + 1)
    rowwise = ROWWISE[name](np.array(strengths)).apply(h, plane)
    looped = [ROWWISE[name](np.array(s)).apply(h[i], plane) for i, s in enumerate(strengths)]
    assert largest(rowwise - torch.stack(looped)) < TOLERANCE * max(1, largest(rowwise))


@every_case
@given(seed=SEEDS, degrees=DEGREES, scale=st.floats(0, 4))
@settings(max_examples=25)
def test_an_orthogonal_change_of_basis_commutes(
    name: str, seed: int, degrees: float, scale: float
) -> None:
    plane, h = plane_of(16, seed), normal(4, 16, seed=seed + 1)
    operator, _ = CASES[name](degrees, scale)
    change, _ = torch.linalg.qr(normal(16, 16, seed=seed + 2))
    moved = operator.apply(h, plane) @ change.T
    changed = operator.apply(h @ change.T, Plane(change @ plane.b1, change @ plane.b2))
    assert largest(changed - moved) < 10 * TOLERANCE * max(1, largest(moved))


@every_case
@given(seed=SEEDS, degrees=DEGREES, scale=st.floats(0, 4))
@settings(max_examples=25)
def test_the_complement_is_untouched(name: str, seed: int, degrees: float, scale: float) -> None:
    """Of the plane; for the rotation toward b1, of b1 and the token, so its direction."""
    plane, h = plane_of(16, seed), normal(4, 16, seed=seed + 1)
    operator, _ = CASES[name](degrees, scale)
    moved = operator.apply(h, plane)
    if name == "RotateToward":
        before, after = (x - torch.outer(x @ plane.b1, plane.b1) for x in (h, moved))
        cosine = torch.cosine_similarity(before, after, dim=1).abs()
        assert largest(cosine - 1) < 1e-9 or float(after.norm(dim=1).min()) < 1e-6
    else:
        outside = torch.from_numpy(full_basis(plane.b1.numpy(), plane.b2.numpy())[:, 2:])
        assert largest((moved - h) @ outside) < TOLERANCE * max(1, largest(moved))


@given(SEEDS, DEGREES, DEGREES)
def test_rotations_are_a_group(seed: int, first: float, second: float) -> None:
    plane, h = plane_of(16, seed), normal(4, 16, seed=seed + 1)
    once = RotateBy(first).apply(h, plane)
    both = RotateBy(first + second).apply(h, plane)
    assert largest(RotateBy(second).apply(once, plane) - both) < TOLERANCE
    assert largest(RotateBy(-first).apply(once, plane) - h) < TOLERANCE


@given(SEEDS, DEGREES, DEGREES, st.floats(0.25, 4), st.floats(0.25, 4))
def test_rotations_with_a_scale_are_a_group_whose_scales_multiply(
    seed: int, first: float, second: float, r: float, s: float
) -> None:
    plane, h = plane_of(16, seed), normal(4, 16, seed=seed + 1)
    once = RotateScale(first, scale=r).apply(h, plane)
    both = RotateScale(first + second, scale=r * s).apply(h, plane)
    assert largest(RotateScale(second, scale=s).apply(once, plane) - both) < 16 * TOLERANCE
    assert largest(RotateScale(-first, scale=1 / r).apply(once, plane) - h) < 16 * TOLERANCE


@pytest.mark.parametrize("name", ["RotateTo", "SetAngle", "Ablate"])
@given(seed=SEEDS, degrees=DEGREES)
def test_what_sets_a_coordinate_is_idempotent(name: str, seed: int, degrees: float) -> None:
    plane, h = plane_of(16, seed), normal(4, 16, seed=seed + 1)
    operator, _ = CASES[name](degrees, 3.0)
    once = operator.apply(h, plane)
    assert largest(operator.apply(once, plane) - once) < TOLERANCE


def test_what_moves_by_an_amount_is_not_idempotent() -> None:
    plane, h = plane_of(16, 0), normal(4, 16, seed=1)
    for name in ("RotateBy", "RotateScale", "RotateToward", "Add", "Reflect"):
        operator, _ = CASES[name](30.0, 2.0)
        once = operator.apply(h, plane)
        assert largest(operator.apply(once, plane) - once) > 0.1


@given(SEEDS)
def test_reflection_is_an_involution(seed: int) -> None:
    plane, h = plane_of(16, seed), normal(4, 16, seed=seed + 1)
    assert largest(Reflect().apply(Reflect().apply(h, plane), plane) - h) < TOLERANCE


@given(SEEDS, st.floats(0.01, 0.98), DEGREES)
def test_rotation_toward_b1_adds_until_it_reaches_it(
    seed: int, share: float, second: float
) -> None:
    """The first turn covers a share of the way to b1; the second may go anywhere."""
    plane, h = plane_of(16, seed), normal(1, 16, seed=seed + 1)
    first = share * math.degrees(math.acos(float(h[0] @ plane.b1 / h.norm())))
    once = RotateToward(first).apply(h, plane)
    both = RotateToward(first + second).apply(h, plane)
    assert largest(RotateToward(second).apply(once, plane) - both) < 100 * TOLERANCE


@pytest.mark.parametrize(
    "name", ["RotateBy", "RotateTo", "RotateToIfAligned", "RotateToward", "Reflect"]
)
@given(seed=SEEDS, degrees=DEGREES)
def test_the_norm_is_kept(name: str, seed: int, degrees: float) -> None:
    plane, h = plane_of(16, seed), normal(4, 16, seed=seed + 1)
    operator, _ = CASES[name](degrees, 1.0)
    after, before = operator.apply(h, plane).norm(dim=1), h.norm(dim=1)
    assert largest(after / before - 1) < TOLERANCE


@pytest.mark.parametrize("name", ["RotateScale", "SetAngle", "Add", "ActAdd", "Ablate"])
def test_the_norm_is_not_kept_by_the_others(name: str) -> None:
    plane, h = plane_of(16, 0), normal(8, 16, seed=1)
    operator, _ = CASES[name](30.0, 3.0)
    after, before = operator.apply(h, plane).norm(dim=1), h.norm(dim=1)
    assert float((after / before - 1).abs().max()) > 0.05


SMOOTH: dict[str, Callable[[Tensor, Plane, Tensor], Tensor]] = {
    "rotate_by": rotate_by,
    "rotate_scale": lambda h, plane, rows: rotate_scale(h, plane, rows, 1 + rows.abs()),
    "rotate_to": rotate_to,
    "rotate_to_if_aligned": rotate_to_if_aligned,
    "rotate_toward": rotate_toward,
    "set_angle": lambda h, plane, rows: set_angle(h, plane, rows, 3.0),
    "add": add,
    "ablate": lambda h, plane, rows: ablate(h, plane) * rows[:, None],
    "reflect": lambda h, plane, rows: reflect(h, plane) * rows[:, None],
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """With respect to the activation and to its strengths."""
    plane, h = plane_of(6, 1), normal(3, 6, seed=2).requires_grad_()
    rows = torch.tensor([0.4, -1.1, 2.3], dtype=torch.float64, requires_grad=True)
    assert (
        float((h.detach() @ plane.b1).abs().min()) > 0.01
    )  # away from the step of the aligned one
    assert torch.autograd.gradcheck(lambda h, rows: SMOOTH[name](h, plane, rows), (h, rows))


def test_the_gradient_of_a_token_that_cannot_turn_is_its_own() -> None:
    plane = plane_of(6, 1)
    h = torch.stack((2 * plane.b1, -plane.b1, torch.zeros(6, dtype=torch.float64)))
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(rotate_toward(h, plane, 0.7).sum(), h)
    assert largest(gradient - 1) < TOLERANCE


def test_the_gradient_of_a_token_without_a_phase_is_finite() -> None:
    plane = Plane(torch.eye(6, dtype=torch.float64)[0], torch.eye(6, dtype=torch.float64)[1])
    h = torch.eye(6, dtype=torch.float64)[3:].requires_grad_()
    for turn in (rotate_to, rotate_to_if_aligned, rotate_toward):
        (gradient,) = torch.autograd.grad(turn(h, plane, 0.7).sum(), h)
        assert torch.isfinite(gradient).all()
