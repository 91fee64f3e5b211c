"""Operators: frozen values that say what is done to an activation and how strongly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens import geometry
from ss_lens.errors import UserError
from ss_lens.geometry import Plane

Strengths = float | int | Sequence[float | int] | np.ndarray | Tensor
"""One number for all rows, or one per batch row; kept as a float or a tuple of floats."""


def _validated(name: str, value: Strengths) -> float | tuple[float, ...]:
    rows = np.asarray(value, dtype=float)
    if rows.ndim > 1 or rows.size == 0:
        raise UserError(f"{name} has shape {rows.shape}; give one number, or one per batch row.")
    if not np.isfinite(rows).all():
        raise UserError(f"{name} must be finite; got {value!r}.")
    return float(rows) if rows.ndim == 0 else tuple(rows.tolist())


@lru_cache(maxsize=64)
def _row_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _rows(value: Strengths) -> int | None:
    """How many batch rows the strengths are for; ``None`` when one holds for all."""
    return len(value) if isinstance(value, tuple) else None


@dataclass(frozen=True)
class _Angular:
    """What the four operators with an angle share: its validation and its conversion to radians."""

    angle_deg: Strengths

    def __post_init__(self) -> None:
        object.__setattr__(self, "angle_deg", _validated("angle_deg", self.angle_deg))

    @property
    def rows(self) -> int | None:
        return _rows(self.angle_deg)

    @property
    def is_identity(self) -> bool:
        return False

    def _radians(self, h: Tensor) -> float | Tensor:
        # Reduced in degrees, where 360 is exact, so that θ and θ + 360 are the same operator.
        if isinstance(self.angle_deg, tuple):
            return _row_tensor(tuple(math.radians(v % 360.0) for v in self.angle_deg), h.device)
        return math.radians(cast("float", self.angle_deg) % 360.0)


@dataclass(frozen=True)
class RotateBy(_Angular):
    """Selective Steering: turn the in-plane part by ``angle_deg`` (:func:`geometry.rotate_by`)."""

    is_linear: ClassVar[bool] = True

    @property
    def is_identity(self) -> bool:
        return isinstance(self.angle_deg, float) and self.angle_deg % 360.0 == 0.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_by(h, plane, self._radians(h))


@dataclass(frozen=True)
class RotateTo(_Angular):
    """Standard Angular Steering: turn to an absolute angle (:func:`geometry.rotate_to`)."""

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

    magnitude: float | int = 1.0
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
        return _rows(self.alpha)

    @property
    def is_identity(self) -> bool:
        return isinstance(self.alpha, float) and self.alpha == 0.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        alpha = self.alpha
        rows = _row_tensor(alpha, h.device) if isinstance(alpha, tuple) else cast("float", alpha)
        return geometry.add(h, plane, rows)


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
