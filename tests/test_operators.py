"""Operators as values: validation, equality, strengths per row, and what they claim to be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ss_lens import (
    Ablate,
    Add,
    Plane,
    RotateBy,
    RotateTo,
    RotateToIfAligned,
    SetAngle,
    UserError,
)
from ss_lens import geometry as g
from ss_lens.operators import Operator

ANGULAR = (RotateBy, RotateTo, RotateToIfAligned, SetAngle)
STRONG = (*ANGULAR, Add)
every_angular = pytest.mark.parametrize("kind", ANGULAR)
every_strong = pytest.mark.parametrize("kind", STRONG)
EVERY = (*(kind(40) for kind in STRONG), Ablate())
every_operator = pytest.mark.parametrize("operator", EVERY, ids=lambda o: type(o).__name__)


@pytest.fixture
def plane() -> Plane:
    q, _ = torch.linalg.qr(h_of(16, 2, seed=9))
    return Plane(q[:, 0].contiguous(), q[:, 1].contiguous())


def h_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@every_strong
def test_operators_are_frozen_hashable_and_equal_by_value(kind: Callable[..., Operator]) -> None:
    assert (
        kind(30)
        == kind(30.0)
        == kind(np.float64(30))
        == kind(np.array(30))
        == kind(torch.tensor(30.0))
    )
    assert len({kind(30), kind(30.0), kind(31), kind([30, 31]), kind((30.0, 31.0))}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind(30).angle_deg = 3  # type: ignore[misc, union-attr]


def test_different_operators_with_one_strength_are_different_cells() -> None:
    assert len({*(kind(30) for kind in STRONG), Ablate(), Ablate()}) == 6
    assert SetAngle(30) != SetAngle(30, magnitude=2)


@every_strong
@pytest.mark.parametrize(
    "rows",
    [
        [10, 20.5, -30],
        (10.0, 20.5, -30.0),
        np.array([10, 20.5, -30]),
        np.array([10, 20.5, -30], dtype=np.float32),
        torch.tensor([10, 20.5, -30]),
        torch.tensor([10, 20.5, -30], dtype=torch.float64),
    ],
    ids=lambda rows: f"{type(rows).__name__}-{getattr(rows, 'dtype', '')}",
)
def test_strengths_per_row_are_kept_as_plain_floats(
    kind: Callable[..., Operator], rows: list | tuple | np.ndarray | Tensor
) -> None:
    operator = kind(rows)
    assert operator == kind((10.0, 20.5, -30.0))
    assert operator.rows == 3
    assert kind(10).rows is None


def test_integer_arrays_are_strengths() -> None:
    assert RotateBy(np.arange(3)) == RotateBy(torch.arange(3)) == RotateBy((0.0, 1.0, 2.0))


@every_strong
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, (0.0, math.nan)])
def test_a_strength_that_is_not_finite_is_rejected(
    kind: Callable[..., Operator], bad: float | tuple[float, ...]
) -> None:
    with pytest.raises(UserError, match=r"(angle_deg|alpha) must be finite; got .*(nan|inf)"):
        kind(bad)


@every_strong
@pytest.mark.parametrize("bad", [[], torch.zeros(2, 2), np.zeros((1, 1))])
def test_no_strength_and_two_dimensions_are_rejected(
    kind: Callable[..., Operator], bad: list | Tensor | np.ndarray
) -> None:
    with pytest.raises(UserError, match=r"(angle_deg|alpha) has shape \(.*\); give one number"):
        kind(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1])
def test_a_bad_magnitude_is_rejected(bad: float) -> None:
    with pytest.raises(UserError, match="magnitude must be finite and not negative; got"):
        SetAngle(0, magnitude=bad)


@every_angular
@given(degrees=st.integers(-720, 720))
def test_an_angle_and_its_full_turn_give_identical_output(
    kind: Callable[..., Operator], degrees: int
) -> None:
    basis = torch.linalg.qr(h_of(16, 2, seed=9))[0]
    plane, h = Plane(basis[:, 0].contiguous(), basis[:, 1].contiguous()), h_of(3, 16).float()
    expected = kind(degrees).apply(h, plane)
    assert torch.equal(kind(degrees + 360).apply(h, plane), expected)
    assert torch.equal(kind(degrees - 720).apply(h, plane), expected)
    in_rows = kind([degrees] * 3).apply(h, plane)
    assert torch.equal(kind([degrees + 360] * 3).apply(h, plane), in_rows)


def test_apply_is_the_geometry_in_degrees(plane: Plane) -> None:
    h = h_of(3, 16)
    for kind, turn in zip(
        ANGULAR, (g.rotate_by, g.rotate_to, g.rotate_to_if_aligned, g.set_angle), strict=True
    ):
        expected = turn(h, plane, math.pi / 3)
        torch.testing.assert_close(kind(60).apply(h, plane), expected, rtol=0, atol=1e-12)
    assert torch.equal(SetAngle(0, magnitude=4).apply(h, plane), g.set_angle(h, plane, 0.0, 4))
    assert torch.equal(Add(-2).apply(h, plane), g.add(h, plane, -2.0))
    assert torch.equal(Ablate().apply(h, plane), g.ablate(h, plane))


@every_strong
def test_one_strength_per_row_equals_one_operator_per_row(
    kind: Callable[..., Operator], plane: Plane
) -> None:
    h, strengths = h_of(4, 2, 16), [0, 33.0, 180, -400]
    looped = torch.stack([kind(s).apply(h[i], plane) for i, s in enumerate(strengths)])
    torch.testing.assert_close(kind(strengths).apply(h, plane), looped, rtol=0, atol=1e-5)


@every_strong
def test_a_wrong_number_of_rows_is_rejected(kind: Callable[..., Operator], plane: Plane) -> None:
    with pytest.raises(
        UserError, match=r"got 3 strengths for activations of shape \(4, 16\).*per row"
    ):
        kind([1, 2, 3]).apply(h_of(4, 16), plane)


@every_operator
def test_is_linear_is_true_exactly_of_linear_maps(operator: Operator, plane: Plane) -> None:
    a, b = h_of(2, 50, 16, seed=4).unbind(0)
    f = lambda h: operator.apply(h, plane)  # noqa: E731
    gap = float((f(2 * a - 3 * b) - (2 * f(a) - 3 * f(b))).abs().max())
    assert (gap < 1e-11) == operator.is_linear
    assert operator.is_linear or gap > 0.1


@every_operator
def test_is_identity_is_false_of_operators_that_change_something(
    operator: Operator, plane: Plane
) -> None:
    h = h_of(50, 16)
    assert not operator.is_identity
    assert float((operator.apply(h, plane) - h).abs().max()) > 0.1


@pytest.mark.parametrize("operator", [RotateBy(0), RotateBy(-720), RotateBy(360.0), Add(0)])
def test_identities_say_so_and_change_nothing(operator: Operator, plane: Plane) -> None:
    h = h_of(5, 16).float()
    assert operator.is_identity
    assert torch.equal(operator.apply(h, plane), h)


@every_operator
def test_zero_is_the_identity_of_relative_operators_only(operator: Operator) -> None:
    if isinstance(operator, Ablate):
        pytest.skip("it has no strength")
    assert type(operator)(0).is_identity == isinstance(operator, RotateBy | Add)


def test_a_sweep_that_contains_zero_is_not_the_identity() -> None:
    assert not RotateBy([0, 90]).is_identity


def test_rows_at_zero_stay_bit_for_bit(plane: Plane) -> None:
    h = h_of(3, 2, 16).float()
    turned = RotateBy([0, 90, 360]).apply(h, plane)
    assert torch.equal(turned[[0, 2]], h[[0, 2]])
    assert not torch.equal(turned[1], h[1])
