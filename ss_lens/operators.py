"""Operators: frozen values that say what is done to an activation and how strongly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens import geometry
from ss_lens.errors import UserError
from ss_lens.geometry import Plane

Strengths = float | tuple[float, ...]


def _validated(name: str, value: object) -> Strengths:
    """One finite float, or a tuple of them (one per batch row)."""
    if isinstance(value, Iterable) and not (isinstance(value, Tensor) and value.ndim == 0):
        rows = tuple(float(v) for v in value)
        if not rows:
            raise UserError(f"{name} is empty; give one number, or one per batch row.")
    else:
        rows = float(value)  # type: ignore[arg-type]
    if not all(math.isfinite(v) for v in (rows if isinstance(rows, tuple) else (rows,))):
        raise UserError(f"{name} must be finite; got {value!r}.")
    return rows


@lru_cache(maxsize=64)
def _row_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _strength_for(values: Strengths, h: Tensor) -> float | Tensor:
    return _row_tensor(values, h.device) if isinstance(values, tuple) else values


@dataclass(frozen=True)
class _Angular:
    """What the four operators with an angle share: its validation and its conversion to radians."""

    angle_deg: Strengths

    def __post_init__(self) -> None:
        object.__setattr__(self, "angle_deg", _validated("angle_deg", self.angle_deg))

    @property
    def rows(self) -> int | None:
        """How many batch rows the strengths are for; ``None`` when one holds for all."""
        return len(self.angle_deg) if isinstance(self.angle_deg, tuple) else None

    @property
    def is_identity(self) -> bool:
        return False

    def _radians(self, h: Tensor) -> float | Tensor:
        # Reduced in degrees, where 360 is exact, so that θ and θ + 360 are the same operator.
        turned = self.angle_deg
        if isinstance(turned, tuple):
            return _strength_for(tuple(math.radians(v % 360.0) for v in turned), h)
        return math.radians(turned % 360.0)


@dataclass(frozen=True)
class RotateBy(_Angular):
    """Selective Steering: turn the in-plane part by ``angle_deg`` (:func:`geometry.rotate_by`)."""

    is_linear: ClassVar[bool] = True

    @property
    def is_identity(self) -> bool:
        return not isinstance(self.angle_deg, tuple) and self.angle_deg % 360.0 == 0.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_by(h, plane, self._radians(h))


@dataclass(frozen=True)
class RotateTo(_Angular):
    """Standard Angular Steering: turn to the absolute ``angle_deg`` (:func:`geometry.rotate_to`)."""

    is_linear: ClassVar[bool] = False

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_to(h, plane, self._radians(h))


@dataclass(frozen=True)
class RotateToIfAligned(_Angular):
    """Adaptive Angular Steering: as :class:`RotateTo` where the activation points along ``b1``."""

    is_linear: ClassVar[bool] = False

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_to_if_aligned(h, plane, self._radians(h))


@dataclass(frozen=True)
class SetAngle(_Angular):
    """The ablation without norm preservation: in-plane part of constant ``magnitude``."""

    magnitude: float = 1.0
    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.magnitude) and self.magnitude >= 0):
            raise UserError(f"magnitude must be finite and not negative; got {self.magnitude!r}.")

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.set_angle(h, plane, self._radians(h), self.magnitude)


@dataclass(frozen=True)
class Add:
    """Activation Addition of ``alpha`` along the unit direction (affine; :func:`geometry.add`)."""

    alpha: Strengths
    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _validated("alpha", self.alpha))

    @property
    def rows(self) -> int | None:
        return len(self.alpha) if isinstance(self.alpha, tuple) else None

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.add(h, plane, _strength_for(self.alpha, h))


@dataclass(frozen=True)
class Ablate:
    """Directional Ablation: remove the component along ``b1`` (:func:`geometry.ablate`)."""

    is_linear: ClassVar[bool] = True
    rows: ClassVar[None] = None
    is_identity: ClassVar[bool] = False

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.ablate(h, plane)


Operator = RotateBy | RotateTo | RotateToIfAligned | SetAngle | Add | Ablate
AngularOperator = RotateBy | RotateTo | RotateToIfAligned | SetAngle
