"""Operators: frozen values that say what is done to an activation and how strongly.

An operator is one class here. It says of itself all that others need to know, and
:func:`registered` makes it one of ``Operator.kinds()``, from which texts are read and messages
list what there is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NoReturn, TypeVar, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ss_lens import geometry
from ss_lens.core.checks import described, is_finite
from ss_lens.core.errors import UserError
from ss_lens.core.shown import card
from ss_lens.geometry.picture import picture
from ss_lens.geometry.plane import Plane
from ss_lens.geometry.strengths import Strengths, angles, each, radians, strength, validated

_KINDS: list[type[Operator]] = []
_T = TypeVar("_T", bound="type[Operator]")


def registered(kind: _T) -> _T:
    """Make a class one of ``Operator.kinds()``."""
    _KINDS.append(kind)
    return kind


@dataclass(frozen=True)
class Operator(ABC):
    """What all operators say of themselves.

    Attributes:
        is_linear: the map is linear in the activation, so that weights can hold it.
        strength: the field that a scan varies; ``None`` for an operator without a strength.
        identity: the fields' values at which nothing changes; ``None`` where there are none.
        stays_in_plane: only the part in the calibration's plane changes. Otherwise the operator
            turns in the plane of ``b1`` and each activation.
        is_mirror: the map reverses the orientation of the plane and keeps every norm.
        needs_length: the operator acts at the calibration's direction site alone, once ``bound``
            to the length of the mean difference there.
    """

    is_linear: ClassVar[bool]
    strength: ClassVar[str | None] = None
    identity: ClassVar[Mapping[str, float] | None] = None
    stays_in_plane: ClassVar[bool] = True
    is_mirror: ClassVar[bool] = False
    needs_length: ClassVar[bool] = False

    @classmethod
    def kinds(cls) -> tuple[type, ...]:
        """The operators there are, or those of a family: ``AngularOperator.kinds()``."""
        return tuple(kind for kind in _KINDS if issubclass(kind, cls))

    @property
    def rows(self) -> int | None:
        """How many batch rows the strengths are for; ``None`` where one holds for all."""
        values = (getattr(self, field.name) for field in fields(self))
        return next((len(value) for value in values if isinstance(value, tuple)), None)

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes in any row; no hook is set then."""
        return self.identity is not None and all(
            getattr(self, name) == value for name, value in self.identity.items()
        )

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        """Lipschitz constant of the change, as a function of the in-plane coordinates.

        The largest over the rows; infinite where the change jumps, or depends on more.
        """

    @abstractmethod
    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        """The activations after the operator."""

    def bound(self, length: float | int) -> Operator:
        """The operator where the mean difference has ``length``: itself, unless it needs one."""
        return self

    def _repr_html_(self) -> str:
        """For notebooks: what it is, and where it carries the points of the plane."""
        facts = {
            "map": "linear" if self.is_linear else "not linear",
            "acts": "in the plane" if self.stays_in_plane else "in the plane of b1 and each token",
        }
        if self.identity is not None:
            at = ", ".join(f"{name} = {value:g}" for name, value in self.identity.items())
            facts["identity"] = "now" if self.is_identity else f"at {at}"
        if self.rows is not None:
            return card(repr(self), {**facts, "strengths": f"{self.rows}, one per batch row"})
        if self.needs_length:
            return card(repr(self), {**facts, "length": "that of a calibration's mean difference"})
        return card(repr(self), facts, picture(self.apply))


@dataclass(frozen=True)
class AngularOperator(Operator):
    """An operator with an angle, kept in [0, 360) degrees: 360 is 0 and −90 is 270."""

    angle_deg: Strengths
    strength: ClassVar[str | None] = "angle_deg"

    def __post_init__(self) -> None:
        object.__setattr__(self, "angle_deg", angles("angle_deg", self.angle_deg))

    def _radians(self, h: Tensor) -> float | Tensor:
        return strength(radians(self.angle_deg), h)


@registered
@dataclass(frozen=True)
class RotateBy(AngularOperator):
    """Selective Steering: turn the in-plane part by ``angle_deg`` (:func:`geometry.rotate_by`)."""

    is_linear: ClassVar[bool] = True
    identity: ClassVar[Mapping[str, float] | None] = {"angle_deg": 0.0}

    @property
    def lipschitz(self) -> float:
        return max(2 * math.sin(math.radians(angle) / 2) for angle in each(self.angle_deg))

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_by(h, plane, self._radians(h))


@registered
@dataclass(frozen=True)
class RotateTo(AngularOperator):
    """Standard Angular Steering: turn to an absolute angle (:func:`geometry.rotate_to`)."""

    is_linear: ClassVar[bool] = False

    @property
    def lipschitz(self) -> float:
        return 2.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_to(h, plane, self._radians(h))


@registered
@dataclass(frozen=True)
class RotateToIfAligned(AngularOperator):
    """Adaptive Angular Steering: as :class:`RotateTo` where the activation points along ``b1``."""

    is_linear: ClassVar[bool] = False

    @property
    def lipschitz(self) -> float:
        return math.inf

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_to_if_aligned(h, plane, self._radians(h))


@registered
@dataclass(frozen=True)
class SetAngle(AngularOperator):
    """The ablation without norm preservation: in-plane part of constant ``magnitude``."""

    magnitude: float | int = 1.0
    is_linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        number = self.magnitude if isinstance(self.magnitude, float | int) else math.nan
        if not (is_finite(number) and number >= 0):
            raise UserError(
                f"magnitude must be finite and not negative; got {described(self.magnitude)}."
            )

    @property
    def lipschitz(self) -> float:
        return 1.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.set_angle(h, plane, self._radians(h), self.magnitude)


@registered
@dataclass(frozen=True)
class RotateScale(AngularOperator):
    """Angle and norm as two knobs: turn the in-plane part by ``angle_deg`` and multiply its length
    by ``scale``, each one number or one per row (:func:`geometry.rotate_scale`)."""

    scale: Strengths = 1.0
    is_linear: ClassVar[bool] = True
    identity: ClassVar[Mapping[str, float] | None] = {"angle_deg": 0.0, "scale": 1.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", validated("scale", self.scale))
        if np.min(self.scale) < 0:
            raise UserError(
                f"scale must not be negative; got {described(self.scale)}. Add 180 to "
                "angle_deg instead."
            )
        turned, scaled = (len(v) if isinstance(v, tuple) else None for v in self._pair)
        if None not in (turned, scaled) and turned != scaled:
            raise UserError(
                f"angle_deg is for {turned} rows and scale for {scaled}; give as many of each, or "
                "one number for all rows."
            )

    @property
    def _pair(self) -> tuple[Strengths, Strengths]:
        return self.angle_deg, self.scale

    @property
    def lipschitz(self) -> float:
        turns, scales = (np.array(each(value)) for value in self._pair)
        return float(np.abs(scales * np.exp(1j * np.radians(turns)) - 1).max())

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_scale(h, plane, self._radians(h), strength(self.scale, h))


@registered
@dataclass(frozen=True)
class RotateToward(AngularOperator):
    """Spherical Steering: turn the whole activation toward ``b1`` by ``angle_deg``
    (:func:`geometry.rotate_toward`)."""

    is_linear: ClassVar[bool] = False
    identity: ClassVar[Mapping[str, float] | None] = {"angle_deg": 0.0}
    stays_in_plane: ClassVar[bool] = False

    @property
    def lipschitz(self) -> float:
        return math.inf

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.rotate_toward(h, plane, self._radians(h))


@registered
@dataclass(frozen=True)
class Add(Operator):
    """Activation Addition of ``alpha`` along the unit direction (affine; :func:`geometry.add`)."""

    alpha: Strengths
    is_linear: ClassVar[bool] = False
    strength: ClassVar[str | None] = "alpha"
    identity: ClassVar[Mapping[str, float] | None] = {"alpha": 0.0}

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", validated("alpha", self.alpha))

    @property
    def lipschitz(self) -> float:
        return 0.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.add(h, plane, strength(self.alpha, h))


@registered
@dataclass(frozen=True)
class ActAdd(Operator):
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
    strength: ClassVar[str | None] = "coefficient"
    identity: ClassVar[Mapping[str, float] | None] = {"coefficient": 0.0}
    needs_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficient", validated("coefficient", self.coefficient))

    def bound(self, length: float | int) -> Add:
        """The shift that this is where the mean difference has ``length``, in activation units.

        Raises:
            UserError: the length is not finite and positive.
        """
        if not (is_finite(length) and length > 0):
            raise UserError(
                f"ActAdd needs the length of a mean difference; got {length!r}. A published "
                "calibration does not say it; calibrate on your own activations, or use Add."
            )
        if isinstance(self.coefficient, tuple):
            return Add(alpha=tuple(length * c for c in self.coefficient))
        return Add(alpha=length * cast("float", self.coefficient))

    @property
    def lipschitz(self) -> float:
        return 0.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> NoReturn:
        """Raises a UserError: without a calibration there is no length to add."""
        raise UserError(
            "ActAdd adds a mean difference whose length only a calibration knows; use it with "
            "ss_lens.steer, or bind it yourself: ActAdd(...).bound(length).apply(h, plane)."
        )


@registered
@dataclass(frozen=True)
class Ablate(Operator):
    """Directional Ablation: remove the component along ``b1`` (:func:`geometry.ablate`)."""

    is_linear: ClassVar[bool] = True

    @property
    def lipschitz(self) -> float:
        return 1.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.ablate(h, plane)


@registered
@dataclass(frozen=True)
class Reflect(Operator):
    """Householder reflection: reverse the component along ``b1`` (:func:`geometry.reflect`)."""

    is_linear: ClassVar[bool] = True
    is_mirror: ClassVar[bool] = True

    @property
    def lipschitz(self) -> float:
        return 2.0

    def apply(self, h: Float[Tensor, "*batch d_model"], plane: Plane) -> Tensor:
        return geometry.reflect(h, plane)
