"""Operators: frozen values that say what is done to an activation and how strongly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NoReturn, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens import geometry
from ss_lens.core.errors import UserError
from ss_lens.geometry.blockwise import wide_dtype
from ss_lens.geometry.plane import Plane

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
def _row_tensor(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def _strength(value: Strengths, h: Tensor) -> float | Tensor:
    """As the geometry takes it: a float, or a tensor with one entry per row of ``h``."""
    if isinstance(value, tuple):
        return _row_tensor(value, h.device, wide_dtype(h))
    return cast("float", value)


def _rows(value: Strengths) -> int | None:
    """How many batch rows the strengths are for; ``None`` when one holds for all."""
    return len(value) if isinstance(value, tuple) else None


@dataclass(frozen=True)
class _Angular:
    """What the operators with an angle share: its validation and its conversion to radians."""

    angle_deg: Strengths

    def __post_init__(self) -> None:
        object.__setattr__(self, "angle_deg", _validated("angle_deg", self.angle_deg))

    @property
    def rows(self) -> int | None:
        return _rows(self.angle_deg)

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def _turns_nothing(self) -> bool:
        return isinstance(self.angle_deg, float) and self.angle_deg % 360.0 == 0.0

    def _radians(self, h: Tensor) -> float | Tensor:
        # Reduced in degrees, where 360 is exact, so that θ and θ + 360 are the same operator.
        if isinstance(self.angle_deg, tuple):
            return _strength(tuple(math.radians(v % 360.0) for v in self.angle_deg), h)
        return math.radians(cast("float", self.angle_deg) % 360.0)


@dataclass(frozen=True)
class RotateBy(_Angular):
    """Selective Steering: turn the in-plane part by ``angle_deg`` (:func:`geometry.rotate_by`)."""

    is_linear: ClassVar[bool] = True

    @property
    def is_identity(self) -> bool:
        return self._turns_nothing

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_by(h, plane, self._radians(h))


@dataclass(frozen=True)
class RotateScale(_Angular):
    """Angle and norm as two knobs: turn the in-plane part by ``angle_deg`` and multiply its length
    by ``scale``, each one number or one per row (:func:`geometry.rotate_scale`)."""

    scale: Strengths = 1.0
    is_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", _validated("scale", self.scale))
        if np.min(self.scale) < 0:
            raise UserError(
                f"scale must not be negative; got {self.scale!r}. Add 180 to angle_deg instead."
            )
        turned, scaled = _rows(self.angle_deg), _rows(self.scale)
        if None not in (turned, scaled) and turned != scaled:
            raise UserError(
                f"angle_deg is for {turned} rows and scale for {scaled}; give as many of each, or "
                "one number for all rows."
            )

    @property
    def rows(self) -> int | None:
        return _rows(self.scale) if _rows(self.angle_deg) is None else _rows(self.angle_deg)

    @property
    def is_identity(self) -> bool:
        return self._turns_nothing and isinstance(self.scale, float) and self.scale == 1.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_scale(h, plane, self._radians(h), _strength(self.scale, h))


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
class RotateToward(_Angular):
    """Spherical Steering: turn the whole activation toward ``b1`` by ``angle_deg``
    (:func:`geometry.rotate_toward`)."""

    is_linear: ClassVar[bool] = False

    @property
    def is_identity(self) -> bool:
        return self._turns_nothing

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_toward(h, plane, self._radians(h))


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
        return geometry.add(h, plane, _strength(self.alpha, h))


@dataclass(frozen=True)
class ActAdd:
    r"""Activation Addition in its original form: :math:`h \leftarrow h + c\,(\bar h_+ - \bar h_-)`.

    The difference is not normalised and is added at the one site that it was measured at, where
    :class:`Add` takes its length from the user and shifts every selected site. An operator sees
    neither means nor sites, so :func:`ss_lens.steer` binds this one to the calibration: its length
    comes from the calibration's direction site, whose unit difference of means must be ``b1``.

    Source: arXiv 2308.10248, which takes the difference of one pair of prompts and adds it to the
    first positions; with class means, at every position, it is arXiv 2312.06681's.
    """

    coefficient: Strengths = 1.0
    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficient", _validated("coefficient", self.coefficient))

    @property
    def rows(self) -> int | None:
        return _rows(self.coefficient)

    @property
    def is_identity(self) -> bool:
        return isinstance(self.coefficient, float) and self.coefficient == 0.0

    def bound(self, length: float | int) -> Add:
        """The shift that this is where the mean difference has ``length``, in activation units.

        Raises:
            UserError: the length is not finite and positive.
        """
        if not (math.isfinite(length) and length > 0):
            raise UserError(
                f"ActAdd needs the length of a mean difference; got {length!r}. A published "
                "calibration does not say it; calibrate on your own activations, or use Add."
            )
        if isinstance(self.coefficient, tuple):
            return Add(alpha=tuple(length * c for c in self.coefficient))
        return Add(alpha=length * cast("float", self.coefficient))

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> NoReturn:
        """Raises a UserError: without a calibration there is no length to add."""
        raise UserError(
            "ActAdd adds a mean difference whose length only a calibration knows; use it with "
            "ss_lens.steer, or bind it yourself: ActAdd(...).bound(length).apply(h, plane)."
        )


@dataclass(frozen=True)
class Ablate:
    """Directional Ablation: remove the component along ``b1`` (:func:`geometry.ablate`)."""

    is_linear: ClassVar[bool] = True
    rows: ClassVar[None] = None
    is_identity: ClassVar[bool] = False

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.ablate(h, plane)


@dataclass(frozen=True)
class Reflect:
    """Householder reflection: reverse the component along ``b1`` (:func:`geometry.reflect`)."""

    is_linear: ClassVar[bool] = True
    rows: ClassVar[None] = None
    is_identity: ClassVar[bool] = False

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.reflect(h, plane)


AngularOperator = RotateBy | RotateTo | RotateToIfAligned | SetAngle | RotateScale | RotateToward
Operator = AngularOperator | Add | ActAdd | Ablate | Reflect
