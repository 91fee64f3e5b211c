"""Families of operators: ways of steering that are alike in all but their strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

import ss_lens
from ss_lens import Activations, Calibration, UserError
from ss_lens.geometry.operators import Ablate, Add, Operator, RotateBy, RotateTo, SetAngle

DOUBLINGS = range(-4, 4)
"""Shifts, which have no natural end, are scanned from 1/16 to 8 times the mean coordinate."""
FULL_TURN = 360


@dataclass(frozen=True, eq=False)
class Family:
    """Where to steer, and the operator for each strength; or one operator that has none.

    Attributes:
        calibration: plane and sites.
        operator: from a strength to the operator, such as a class with an angle; or an operator.
        strengths: to look for one among, in order from the start of the interval to its end, up or
            down and close enough together to show the shape of the divergence. None for an operator
            that stands for itself.
        circle: whether the strengths are angles around the whole circle. Which sense of turning is
            which is a convention (the sign of the second axis), so both are looked at: every
            crossing of a budget is a candidate. Of others it is the first from below.

    Raises:
        UserError: one strength, strengths that are not finite or not in order, strengths for an
            operator that cannot take them, or none for one that needs them; a circle that is not
            one.
    """

    calibration: Calibration
    operator: Operator | Callable[[float], Operator]
    strengths: Sequence[float | int] = ()
    circle: bool = False

    def __post_init__(self) -> None:
        strengths = tuple(float(strength) for strength in self.strengths)
        object.__setattr__(self, "strengths", strengths)
        if callable(self.operator) != bool(strengths):
            raise UserError(
                f"a family has an operator and no strengths, or a function of the strength and two "
                f"or more; got {self.operator!r} with {len(strengths)}."
            )
        steps = [after - before for before, after in pairwise(strengths)]
        in_order = all(step > 0 for step in steps) or all(step < 0 for step in steps)
        if not all(map(math.isfinite, strengths)) or len(strengths) == 1 or not in_order:
            raise UserError(
                "the strengths of a family must be two or more finite numbers that rise or fall "
                f"from the start of the interval to its end; got {strengths}."
            )
        if self.circle and (not strengths or abs(strengths[-1] - strengths[0]) != FULL_TURN):
            raise UserError(
                f"a family around the circle has angles from its start to 360° further; got "
                f"{strengths}. Give the whole circle, or circle=False."
            )

    @property
    def is_fixed(self) -> bool:
        return not self.strengths

    def at(self, strength: float | int) -> Operator:
        return self.operator(strength) if callable(self.operator) else self.operator


def paper_families(train: Activations, step: int = 15) -> dict[str, Family]:
    """The operators of arXiv 2601.19375; the first is its proposal.

    Angles are scanned around the whole circle, and shifts in both directions.

    Args:
        train: what to calibrate on.
        step: degrees between the angles that are scanned.

    Raises:
        UserError: a step below 1 or above 90, or an error of the calibration.
    """
    check_step(step)
    chosen = ss_lens.calibrate(train)
    everywhere = ss_lens.calibrate(train, rule="uniform")
    around = (*range(0, FULL_TURN, step), FULL_TURN)
    unit = _mean_coordinate(train, chosen)
    shifts = [unit * 2.0**power for power in DOUBLINGS]
    return {
        "rotate_by, discriminative sites": Family(chosen, RotateBy, around, circle=True),
        "rotate_by, all sites": Family(everywhere, RotateBy, around, circle=True),
        "rotate_to, discriminative sites": Family(chosen, RotateTo, around, circle=True),
        "set_angle, discriminative sites": Family(chosen, SetAngle, around, circle=True),
        "add, along the direction": Family(chosen, Add, [0.0, *shifts]),
        "add, against the direction": Family(chosen, Add, [0.0, *(-shift for shift in shifts)]),
        "ablate, discriminative sites": Family(chosen, Ablate()),
    }


def check_step(step: int) -> None:
    """Raise where the angles of a scan would be too few to show its shape, or too many."""
    if not 1 <= step <= 90:
        raise UserError(f"the scan needs a step of 1 to 90 degrees; got {step}.")


def _mean_coordinate(train: Activations, calibration: Calibration) -> float:
    """Mean \\|h · b1\\| over the prompts and the steered sites, in units of the activation."""
    h = torch.cat([side for site in calibration.selected_sites for side in train.at(site)])
    return float((h @ calibration.plane.b1).abs().mean())
