r"""Rotations and edits of activations inside one 2D plane: pure tensor mathematics, no models.

Every map acts on the in-plane coordinates :math:`p = (h\cdot b_1, h\cdot b_2)` alone and leaves the
orthogonal complement of the plane untouched. None builds a ``d × d`` matrix: two dot products and a
rank-2 update. Angles are in radians. Arithmetic is at least float32 and the input's dtype returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.errors import UserError

ORTHONORMALITY_TOLERANCE = 1e-5

Strength = float | int | Float[Tensor, ""] | Float[Tensor, "row"]
"""One number for all rows, or one per row of the leading (batch) axis of ``h``."""


@dataclass(frozen=True, eq=False)
class Plane:
    """An oriented 2D plane: ``b1`` is angle 0, ``b2`` is angle 90°.

    Raises:
        UserError: the basis is not finite, or not orthonormal to within 1e-5 (it says by how much).
    """

    b1: Float[Tensor, "d_model"]
    b2: Float[Tensor, "d_model"]

    def __post_init__(self) -> None:
        basis = self.basis.cpu().double()
        if not torch.isfinite(basis).all():
            raise UserError("the plane's basis holds NaN or infinity; calibrate again.")
        deviation = (basis @ basis.T - torch.eye(2, dtype=basis.dtype)).abs().max().item()
        if deviation > ORTHONORMALITY_TOLERANCE:
            raise UserError(
                f"the plane's basis is not orthonormal: it deviates by {deviation:.2e}, allowed is "
                f"{ORTHONORMALITY_TOLERANCE:.0e}. Use Plane.from_span(b1, b2) to orthonormalise it."
            )

    @cached_property
    def basis(self) -> Float[Tensor, "2 d_model"]:
        """``b1`` and ``b2`` as rows."""
        return torch.stack((self.b1, self.b2))

    def to(self, device: torch.device | str) -> Plane:
        return Plane(self.b1.to(device), self.b2.to(device))

    @classmethod
    def from_span(cls, b1: Float[Tensor, "d_model"], v: Float[Tensor, "d_model"]) -> Plane:
        """The plane of ``b1`` and ``v`` with ``b1`` as angle 0 (Gram–Schmidt, in float64).

        Raises:
            UserError: ``b1`` is zero, or ``v`` has no component outside it.
        """
        first, second = b1.double(), v.double()
        if first.norm() == 0:
            raise UserError("b1 is the zero vector; a plane needs a direction.")
        first = first / first.norm()
        rest = second - (second @ first) * first
        rest = rest - (rest @ first) * first  # a second pass restores the digits the first one lost
        if rest.norm() <= 1e-6 * second.norm():
            raise UserError("the two vectors are parallel; a plane needs two directions.")
        return cls(first.float(), (rest / rest.norm()).float())


def in_plane(h: Float[Tensor, "*batch d_model"], plane: Plane) -> Float[Tensor, "*batch 2"]:
    """Coordinates of ``h`` in the plane, in at least float32."""
    wide = _widened(h)
    return wide @ _basis_for(wide, plane).T


def rotate_by(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Turn by a relative angle: :math:`p \leftarrow R_\theta p`.

    Linear, keeps the norm, angles add. Source: Selective Steering, arXiv 2601.19375,
    :math:`R_P^\theta`.

    >>> import math, torch
    >>> plane = Plane(torch.tensor([1., 0., 0.]), torch.tensor([0., 1., 0.]))
    >>> rotate_by(torch.tensor([[2., 0., 5.]]), plane, math.pi / 2).round(decimals=4)
    tensor([[0., 2., 5.]])
    """
    cos, sin = _cos_sin(angle, h)
    p = in_plane(h, plane)
    # R − 1 instead of the difference of two large products: exact zeros at angle zero.
    if isinstance(cos, float):
        return _moved(h, plane, p @ p.new_tensor([[cos - 1, sin], [-sin, cos - 1]]))
    x, y = p.unbind(-1)
    return _moved(h, plane, torch.stack(((cos - 1) * x - sin * y, sin * x + (cos - 1) * y), -1))


def rotate_to(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Turn to an absolute angle: :math:`p \leftarrow \|p\| (\cos\theta, \sin\theta)`.

    Idempotent, not linear; keeps the norm for an orthonormal basis but discards the in-plane phase
    of each token. Source: Standard Angular Steering (SAS), the baseline of arXiv 2601.19375.
    """
    return _moved(h, plane, _turn_to(in_plane(h, plane), *_cos_sin(angle, h)))


def rotate_to_if_aligned(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""As :func:`rotate_to` where :math:`p_1 > 0`, else unchanged.

    Source: Adaptive Angular Steering (AAS), the baseline of arXiv 2601.19375.
    """
    p = in_plane(h, plane)
    turn = _turn_to(p, *_cos_sin(angle, h))
    return _moved(h, plane, torch.where(p[..., :1] > 0, turn, torch.zeros_like(turn)))


def set_angle(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength, magnitude: float | int = 1.0
) -> Float[Tensor, "*batch d_model"]:
    r"""Replace the in-plane part: :math:`p \leftarrow m (\cos\theta, \sin\theta)`, constant ``m``.

    Keeps neither the norm nor the phase. Source: the ablation "no norm preservation" of
    arXiv 2601.19375.
    """
    cos, sin = _cos_sin(angle, h)
    x, y = in_plane(h, plane).unbind(-1)
    return _moved(h, plane, torch.stack((magnitude * cos - x, magnitude * sin - y), dim=-1))


def add(
    h: Float[Tensor, "*batch d_model"], plane: Plane, alpha: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Shift along ``b1``: :math:`p_1 \leftarrow p_1 + \alpha`, in units of the activation.

    Source: Activation Addition, arXiv 2308.10248, with the unit direction ``b1``.
    """
    zero = 0 * in_plane(h, plane)[..., 0]
    return _moved(h, plane, torch.stack((zero + _per_row(alpha, h), zero), dim=-1))


def ablate(h: Float[Tensor, "*batch d_model"], plane: Plane) -> Float[Tensor, "*batch d_model"]:
    r"""Remove the component along ``b1``: :math:`p_1 \leftarrow 0`.

    Linear and idempotent. Source: Directional Ablation, arXiv 2406.11717.
    """
    x = in_plane(h, plane)[..., 0]
    return _moved(h, plane, torch.stack((-x, 0 * x), dim=-1))


def _turn_to(p: Tensor, cos: float | Tensor, sin: float | Tensor) -> Tensor:
    x, y = p.unbind(-1)
    radius = torch.hypot(x, y)
    return torch.stack((radius * cos - x, radius * sin - y), dim=-1)


def _widened(h: Tensor) -> Tensor:
    return h.to(torch.promote_types(h.dtype, torch.float32))


def _basis_for(wide: Tensor, plane: Plane) -> Tensor:
    return plane.basis.to(wide)


def _moved(h: Tensor, plane: Plane, change: Tensor) -> Tensor:
    wide = _widened(h)
    return (wide + change @ _basis_for(wide, plane)).to(h.dtype)


def _per_row(strength: Strength, h: Tensor) -> float | Tensor:
    """``strength`` shaped to broadcast over the axes of ``h`` without ``d_model``."""
    if not isinstance(strength, Tensor) or strength.ndim == 0:
        return float(strength)
    if h.ndim < 2 or strength.shape[0] != h.shape[0]:
        raise UserError(
            f"got {strength.shape[0]} strengths for activations of shape {tuple(h.shape)}; "
            "expected one number, or one per row of the batch."
        )
    wide = torch.promote_types(h.dtype, torch.float32)
    return strength.to(h.device, wide).reshape(-1, *[1] * (h.ndim - 2))


def _cos_sin(angle: Strength, h: Tensor) -> tuple[float | Tensor, float | Tensor]:
    theta = _per_row(angle, h)
    if isinstance(theta, Tensor):
        return torch.cos(theta), torch.sin(theta)
    return math.cos(theta), math.sin(theta)
