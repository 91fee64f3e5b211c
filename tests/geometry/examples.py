"""One value of every kind of operator, for tests of what holds of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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

EXAMPLES: dict[type[Operator], Operator] = {
    type(value): value
    for value in (
        RotateBy(40),
        RotateTo(40),
        RotateToIfAligned(40),
        SetAngle(40, magnitude=3),
        RotateScale(40, scale=2),
        RotateToward(40),
        Add(40),
        ActAdd(40),
        Ablate(),
        Reflect(),
    )
}
VALUED = tuple(kind for kind in EXAMPLES if kind.strength is not None)
"""Those with a strength, which is the first argument."""
PLAIN = tuple(kind for kind in EXAMPLES if kind.strength is None)
APPLIED: tuple[Operator, ...] = tuple(value.bound(2.0) for value in EXAMPLES.values())
"""The examples as they act on activations."""


def in_rows(operator: Operator, strengths: Sequence[float]) -> Operator:
    """The operator with one strength per row; itself where it has none."""
    if operator.strength is None:
        return operator
    return replace(operator, **{operator.strength: tuple(strengths)})
