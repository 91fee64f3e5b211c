"""The change of a weight against dense matrices, and what weights cannot hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ss_lens import (
    Ablate,
    ActAdd,
    Add,
    Plane,
    Reflect,
    RotateBy,
    RotateScale,
    RotateTo,
    RotateToIfAligned,
    RotateToward,
    SetAngle,
    UserError,
)
from ss_lens.exports.linear_map import LinearMap, check_affine, check_kind, turns
from ss_lens.geometry.operators import Operator

LINEAR: tuple[Operator, ...] = (
    RotateBy(0),
    RotateBy(135),
    Ablate(),
    Reflect(),
    RotateScale(250, scale=1.5),
    RotateScale(0, scale=0),
)


@pytest.fixture
def plane() -> Plane:
    generator = torch.Generator().manual_seed(0)
    return Plane.from_span(*torch.randn(2, 24, generator=generator))


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(10, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("operator", LINEAR, ids=str)
def test_a_changed_weight_reads_what_the_old_one_read_after_the_operator(
    operator: Operator, plane: Plane, weight: Tensor
) -> None:
    h = torch.randn(50, 24, dtype=torch.float64)
    change = LinearMap.of(operator, plane).factors(weight)
    changed = weight.double() + change.b @ change.a
    expected = operator.apply(h, plane) @ weight.double().T
    torch.testing.assert_close(h @ changed.T, expected, rtol=0, atol=1e-6)
    assert torch.equal(change.a, plane.basis.double())
    assert change.b.shape == (10, 2)


def test_a_shift_is_the_bias_of_the_readers(plane: Plane, weight: Tensor) -> None:
    moved = LinearMap.of(Add(alpha=-2.5), plane)
    h = torch.randn(5, 24, dtype=torch.float64)
    expected = Add(alpha=-2.5).apply(h, plane) @ weight.double().T
    got = h @ weight.double().T + moved.bias(weight)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert not moved.factors(weight).b.any()


@pytest.mark.parametrize("operator", LINEAR, ids=str)
def test_a_linear_operator_shifts_nothing(operator: Operator, plane: Plane, weight: Tensor) -> None:
    assert not LinearMap.of(operator, plane).bias(weight).any()


def test_the_identity_changes_nothing_bit_for_bit(plane: Plane, weight: Tensor) -> None:
    assert not LinearMap.of(RotateBy(0), plane).factors(weight).b.any()


@pytest.mark.parametrize("angle", [0, 17.5, 90, 135, 180, 300])
def test_two_turns_add_up_to_every_angle(angle: float, plane: Plane, weight: Tensor) -> None:
    first, second = (turn.factors(weight).b for turn in turns(plane))
    theta = math.radians(angle)
    fixed = LinearMap.of(RotateBy(angle), plane).factors(weight).b
    summed = (math.cos(theta) - 1) * first + math.sin(theta) * second
    torch.testing.assert_close(summed, fixed, rtol=0, atol=1e-14)


def test_a_basis_that_rounding_skewed_gives_the_hooks_own_map(weight: Tensor) -> None:
    """What deviates from an orthonormal basis by 9e-6 is steered as it is, and so exported."""
    b1 = torch.zeros(24, dtype=torch.float64)
    b2 = torch.zeros(24, dtype=torch.float64)
    b1[0], b2[1], b2[0] = 1.0, 1.0, 9e-6
    plane = Plane(b1, b2)
    h = torch.randn(50, 24, dtype=torch.float64)
    change = LinearMap.of(RotateBy(120), plane).factors(weight)
    expected = RotateBy(120).apply(h, plane) @ weight.double().T
    got = h @ (weight.double() + change.b @ change.a).T
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (RotateTo(90), "not linear in the activation"),
        (RotateToIfAligned(90), "not linear in the activation"),
        (SetAngle(90), "not linear in the activation"),
        (RotateToward(90), "turns each activation in a plane of its own"),
        (RotateBy([0, 90]), "has 2 strengths, one for each batch row.*kind='bank'"),
        (Add(alpha=[1, 2, 3]), "has 3 strengths"),
    ],
    ids=str,
)
def test_what_weights_cannot_hold_is_refused_by_name(operator: Operator, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        check_affine(operator)
    assert str(operator) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_names_the_operators_that_are_exact() -> None:
    with pytest.raises(UserError, match="RotateBy, RotateScale, Ablate, Reflect, or Add where"):
        check_affine(RotateTo(90))


@pytest.mark.parametrize("kind", ["lora", "gguf-lora", "dial", "bank"])
def test_an_adapter_has_no_place_for_a_constant(kind: str) -> None:
    with pytest.raises(UserError, match=rf"as '{kind}': it adds a constant.*kind='merged'"):
        check_kind(Add(alpha=1), kind)  # type: ignore[arg-type]


def test_a_mean_difference_is_a_constant_once_it_is_bound() -> None:
    check_affine(ActAdd(2.0).bound(3.0))
    check_kind(ActAdd(2.0).bound(3.0), "merged")
