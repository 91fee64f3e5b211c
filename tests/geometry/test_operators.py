"""Operators as values: validation, equality, strengths per row, and what they claim to be."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from ss_lens import Plane, UserError, geometry as g
from ss_lens.core.values import read_value
from ss_lens.geometry import operators
from ss_lens.geometry.maps import rotate_toward
from ss_lens.geometry.operators import (
    Ablate,
    ActAdd,
    Add,
    AngularOperator,
    Operator,
    Reflect,
    RotateBy,
    RotateScale,
    RotateTo,
    RotateToIfAligned,
    RotateToward,
    SetAngle,
)
from tests.geometry.examples import APPLIED, EXAMPLES, PLAIN, VALUED

ANGULAR = AngularOperator.kinds()
STRONG = tuple(kind for kind in VALUED if not kind.needs_length)
every_angular = pytest.mark.parametrize("kind", ANGULAR)
every_strong = pytest.mark.parametrize("kind", STRONG)
every_value_kind = pytest.mark.parametrize("kind", VALUED)
EVERY = (*(kind(40) for kind in STRONG), *APPLIED)
every_operator = pytest.mark.parametrize("operator", EVERY, ids=lambda o: type(o).__name__)


@pytest.fixture
def plane() -> Plane:
    q, _ = torch.linalg.qr(h_of(16, 2, seed=9))
    return Plane(q[:, 0].contiguous(), q[:, 1].contiguous())


def h_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@every_value_kind
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
    values = {*(kind(30) for kind in VALUED), *(kind() for kind in PLAIN * 2)}
    assert len(values) == len(Operator.kinds())
    assert SetAngle(30) != SetAngle(30, magnitude=2)
    assert RotateScale(30) != RotateScale(30, scale=2)


def test_every_operator_of_the_module_is_registered_and_has_an_example() -> None:
    classes = [value for value in vars(operators).values() if inspect.isclass(value)]
    concrete = {c for c in classes if issubclass(c, Operator) and not inspect.isabstract(c)}
    assert concrete == {*Operator.kinds()} == {*EXAMPLES} == {*STRONG, *PLAIN, ActAdd}
    assert {RotateScale, RotateToward} < set(ANGULAR)


@pytest.mark.parametrize(
    "operator",
    [*EVERY, ActAdd(), ActAdd([1, -2]), RotateScale([10, 20], scale=[1, 2]), SetAngle(0, 3)],
    ids=repr,
)
def test_an_operator_reads_back_from_what_it_prints(operator: Operator) -> None:
    assert read_value(repr(operator), Operator.kinds(), "operator") == operator


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
@every_value_kind
def test_strengths_per_row_are_kept_as_plain_floats(
    kind: Callable[..., Operator], rows: list | tuple | np.ndarray | Tensor
) -> None:
    operator = kind(rows)
    assert operator == kind((10.0, 20.5, -30.0))
    assert operator.rows == 3
    assert kind(10).rows is None


def test_integer_arrays_are_strengths() -> None:
    assert RotateBy(np.arange(3)) == RotateBy(torch.arange(3)) == RotateBy((0.0, 1.0, 2.0))


@every_value_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, (0.0, math.nan)])
def test_a_strength_that_is_not_finite_is_rejected(
    kind: Callable[..., Operator], bad: float | tuple[float, ...]
) -> None:
    with pytest.raises(
        UserError, match=r"(angle_deg|alpha|coefficient) must be finite; got .*(nan|inf)"
    ):
        kind(bad)


@every_value_kind
@pytest.mark.parametrize("bad", [[], torch.zeros(2, 2), np.zeros((1, 1))])
def test_no_strength_and_two_dimensions_are_rejected(
    kind: Callable[..., Operator], bad: list | Tensor | np.ndarray
) -> None:
    with pytest.raises(
        UserError, match=r"(angle_deg|alpha|coefficient) has shape \(.*\); give one number"
    ):
        kind(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1])
def test_a_bad_magnitude_is_rejected(bad: float) -> None:
    with pytest.raises(UserError, match="magnitude must be finite and not negative; got"):
        SetAngle(0, magnitude=bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, (1.0, math.nan)])
def test_a_scale_that_is_not_finite_is_rejected(bad: float | tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="scale must be finite; got"):
        RotateScale(0, scale=bad)


@pytest.mark.parametrize("bad", [-1, (1.0, -0.5)])
def test_a_negative_scale_is_rejected_and_a_half_turn_proposed(
    bad: float | tuple[float, ...],
) -> None:
    with pytest.raises(UserError, match=r"scale must not be negative; got .*Add 180 to angle_deg"):
        RotateScale(0, scale=bad)


def test_angles_and_scales_for_different_numbers_of_rows_are_rejected() -> None:
    with pytest.raises(UserError, match=r"angle_deg is for 3 rows and scale for 2; give as many"):
        RotateScale([0, 1, 2], scale=[1, 2])


def test_rotate_scale_takes_angle_and_scale_each_as_one_or_per_row(plane: Plane) -> None:
    h = h_of(3, 4, 16)
    for angle, scale, rows in (
        (40, 2, None),
        ((10, 20, 30), 2, 3),
        (40, (0, 1, 2), 3),
        ((10, 20, 30), (0, 1, 2), 3),
    ):
        operator = RotateScale(angle, scale=scale)
        angles, scales = (np.broadcast_to(v, 3).tolist() for v in (angle, scale))
        looped = [
            RotateScale(a, scale=s).apply(row, plane)
            for a, s, row in zip(angles, scales, h, strict=True)
        ]
        assert operator.rows == rows
        torch.testing.assert_close(
            operator.apply(h, plane), torch.stack(looped), rtol=0, atol=1e-12
        )


def test_rotate_scale_at_scale_one_is_rotate_by(plane: Plane) -> None:
    h = h_of(3, 16)
    assert torch.equal(RotateScale(50).apply(h, plane), RotateBy(50).apply(h, plane))


def test_actadd_becomes_an_addition_of_the_whole_mean_difference(plane: Plane) -> None:
    assert ActAdd().bound(2.5) == Add(alpha=2.5)
    assert ActAdd(-2).bound(2.5) == Add(alpha=-5.0)
    assert ActAdd([0, 1, -2]).bound(2.5) == Add(alpha=[0.0, 2.5, -5.0])
    h = h_of(3, 16)
    expected = h + 4 * (2.5 * plane.b1)
    torch.testing.assert_close(ActAdd(4).bound(2.5).apply(h, plane), expected, rtol=0, atol=1e-12)


def test_actadd_alone_knows_no_length_and_says_where_to_get_one(plane: Plane) -> None:
    with pytest.raises(UserError, match=r"only a calibration knows; use it with ss_lens\.steer"):
        ActAdd(2).apply(h_of(3, 16), plane)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_actadd_refuses_a_length_that_is_none(bad: float) -> None:
    with pytest.raises(UserError, match=r"needs the length of a mean difference; got"):
        ActAdd().bound(bad)


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
    turns = {
        RotateBy: g.rotate_by,
        RotateTo: g.rotate_to,
        RotateToIfAligned: g.rotate_to_if_aligned,
        RotateToward: rotate_toward,
        SetAngle: g.set_angle,
        RotateScale: g.rotate_by,
    }
    assert turns.keys() == set(ANGULAR)
    for kind, turn in turns.items():
        expected = turn(h, plane, math.pi / 3)
        torch.testing.assert_close(kind(60).apply(h, plane), expected, rtol=0, atol=1e-12)
    assert torch.equal(SetAngle(0, magnitude=4).apply(h, plane), g.set_angle(h, plane, 0.0, 4))
    assert torch.equal(Add(-2).apply(h, plane), g.add(h, plane, -2.0))
    assert torch.equal(Ablate().apply(h, plane), g.ablate(h, plane))
    assert torch.equal(Reflect().apply(h, plane), g.reflect(h, plane))


@every_strong
def test_one_strength_per_row_equals_one_operator_per_row(
    kind: Callable[..., Operator], plane: Plane
) -> None:
    h, strengths = h_of(4, 2, 16), [0, 33.0, 180, -400]
    looped = torch.stack([kind(s).apply(h[i], plane) for i, s in enumerate(strengths)])
    torch.testing.assert_close(kind(strengths).apply(h, plane), looped, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize(
    "operator",
    [
        RotateBy(0),
        RotateBy(-720),
        RotateBy(360.0),
        RotateScale(360),
        RotateToward(-360),
        Add(0),
    ],
    ids=repr,
)
def test_identities_say_so_and_change_nothing(operator: Operator, plane: Plane) -> None:
    h = h_of(5, 16).float()
    assert operator.is_identity
    assert torch.equal(operator.apply(h, plane), h)


@every_value_kind
def test_zero_is_the_identity_of_relative_operators_only(kind: Callable[..., Operator]) -> None:
    relative = {RotateBy, RotateScale, RotateToward, Add, ActAdd}
    assert kind(0).is_identity == (kind in relative)


def test_a_scale_is_no_identity_though_nothing_turns() -> None:
    assert not RotateScale(0, scale=2).is_identity
    assert not RotateScale(0, scale=[1, 1]).is_identity


def test_a_sweep_that_contains_zero_is_not_the_identity() -> None:
    assert not RotateBy([0, 90]).is_identity


def test_rows_at_zero_stay_bit_for_bit(plane: Plane) -> None:
    h = h_of(3, 2, 16).float()
    turned = RotateBy([0, 90, 360]).apply(h, plane)
    assert torch.equal(turned[[0, 2]], h[[0, 2]])
    assert not torch.equal(turned[1], h[1])
