"""What operators say of themselves is so, and a new one is a class in one place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, strategies as st
from jaxtyping import Float
from torch import Tensor

from ss_lens import Plane, UserError
from ss_lens.core.values import read_value
from ss_lens.experiments.grid import Arm
from ss_lens.generation.angle_batch import checked_angles
from ss_lens.geometry import operators
from ss_lens.geometry.operators import (
    Ablate,
    Add,
    AngularOperator,
    Operator,
    Reflect,
    RotateBy,
    RotateScale,
    RotateTo,
    RotateToward,
    SetAngle,
    registered,
)

COORDINATES = Plane(torch.eye(2)[0], torch.eye(2)[1])
VALUES = [
    *(kind(130) for kind in AngularOperator.kinds()),
    *(RotateScale(40, scale=2.5), SetAngle(40, magnitude=3), Add(2), Ablate(), Reflect()),
]


@pytest.mark.parametrize("operator", VALUES, ids=repr)
@given(seed=st.integers(0, 10_000))
def test_no_change_is_steeper_than_the_lipschitz_constant(operator: Operator, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 200, 2, generator=generator, dtype=torch.float64)
    change = [operator.apply(h, COORDINATES) - h for h in (a, b)]
    steepness = (change[0] - change[1]).norm(dim=1) / (a - b).norm(dim=1)
    assert float(steepness.max()) <= operator.lipschitz + 1e-9


@pytest.mark.parametrize("operator", VALUES, ids=repr)
def test_what_stays_in_the_plane_and_what_mirrors_it_say_so(operator: Operator) -> None:
    plane = Plane(torch.eye(5)[0], torch.eye(5)[1])
    h = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = operator.apply(h, plane)
    assert torch.equal(new[:, 2:], h[:, 2:]) == operator.stays_in_plane
    if operator.is_linear:
        image = operator.apply(torch.eye(2, dtype=torch.float64), COORDINATES)
        determinant = float(torch.linalg.det(image))
        assert (determinant == pytest.approx(-1)) == operator.is_mirror


@pytest.mark.parametrize("kind", Operator.kinds())
def test_an_operator_is_the_identity_at_the_strength_that_it_names(kind: type) -> None:
    if kind.identity is None:
        return
    assert kind(**kind.identity).is_identity
    assert kind.strength in kind.identity


@pytest.mark.parametrize("kind", AngularOperator.kinds())
@given(degrees=st.integers(-1080, 1080), turns=st.integers(-3, 3))
def test_an_angle_and_its_full_turns_are_one_value(kind: type, degrees: int, turns: int) -> None:
    assert kind(degrees + 360 * turns) == kind(degrees)
    assert hash(kind((degrees, 5))) == hash(kind((degrees + 360 * turns, 5 - 360)))
    assert 0 <= kind(degrees).angle_deg < 360


def test_minus_ninety_is_270_and_a_rounded_full_turn_is_zero() -> None:
    assert RotateBy(-90).angle_deg == 270
    assert RotateTo(360) == RotateTo(0)
    assert RotateBy(-1e-20).is_identity
    with pytest.raises(UserError, match=r"angle 0 is given twice \(0 and 360 are the same\)"):
        checked_angles(RotateTo, [0, 90, 360])


@pytest.mark.parametrize("kind", [RotateBy, Add])
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("bad", ["ninety", object(), [1, [2, 3]]])
def test_a_strength_that_is_no_number_is_refused(kind: type, bad: object) -> None:
    with pytest.raises(UserError, match=r"must be one number, or one per batch row; got"):
        kind(bad)


# --- a new operator ------------------------------------------------------------------------------


@pytest.fixture
def half_way() -> Iterator[type[AngularOperator]]:
    """A new operator, registered as long as the test runs."""

    @registered
    @dataclass(frozen=True)
    class HalfWay(AngularOperator):
        is_linear: ClassVar[bool] = True

        @property
        def lipschitz(self) -> float:
            return 2.0

        def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
            return RotateBy(math.degrees(float(self._radians(h)) / 2)).apply(h, plane)

    yield HalfWay
    operators._KINDS.remove(HalfWay)


def test_a_new_operator_is_known_wherever_operators_are_named(
    half_way: type[AngularOperator],
) -> None:
    assert half_way in Operator.kinds()
    assert half_way in AngularOperator.kinds()
    assert read_value("HalfWay(angle_deg=40)", Operator.kinds(), "operator") == half_way(40)
    assert Arm(model="m", dataset="d", operator="HalfWay").operator_value == half_way(0)
    assert checked_angles(half_way, [0, 90]) == (0.0, 90.0)
    h = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(
        half_way(90).apply(h, COORDINATES), RotateBy(45).apply(h, COORDINATES)
    )
    assert not RotateToward(5).stays_in_plane
    assert half_way(90).stays_in_plane
