r"""Rotations and edits of activations inside one 2D plane: pure tensor mathematics, no models.

Every map acts on the in-plane coordinates :math:`p = (h\cdot b_1, h\cdot b_2)` alone, taken as the
complex number :math:`z = p_1 + i p_2`, and leaves the orthogonal complement of the plane untouched;
the exception is :func:`rotate_toward`, which turns in a plane of each activation's own. None builds
a ``d × d`` matrix: two dot products and a rank-2 update. Angles are in radians.
Arithmetic is at least float32 and the input's dtype returns.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ss_lens.geometry.blockwise import Amount, Strength, edited, per_row, wide_dtype
from ss_lens.geometry.plane import ORTHONORMALITY_TOLERANCE, Plane

SMALL = 2**15
"""Up to so many numbers, one kernel more costs as much as the arithmetic."""


def rotate_by(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Turn by a relative angle: :math:`p \leftarrow R_\theta p`, that is
    :math:`z \leftarrow e^{i\theta} z`.

    Linear, keeps the norm, angles add. Source: Selective Steering, arXiv 2601.19375,
    :math:`R_P^\theta`.

    >>> import math, torch
    >>> plane = Plane(torch.tensor([1., 0., 0.]), torch.tensor([0., 1., 0.]))
    >>> rotate_by(torch.tensor([[2., 0., 5.]]), plane, math.pi / 2).round(decimals=4)
    tensor([[0., 2., 5.]])
    """
    return _moved(h, plane, lambda z, unit: (unit - 1) * z, phase(angle, h))


def rotate_scale(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength, scale: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Turn by a relative angle and scale: :math:`z \leftarrow \rho e^{i\theta} z`.

    Linear; angles add and scales multiply; keeps the norm where :math:`\rho = 1`. Angle and norm
    as two knobs are the angle–norm decomposition of arXiv 2606.06735, which sets the norm of the
    whole activation; here it is the norm of the in-plane part.
    """
    factor = per_row(scale, h) * phase(angle, h)
    return _moved(h, plane, lambda z, factor: (factor - 1) * z, factor)


def rotate_to(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Turn to an absolute angle: :math:`z \leftarrow |z| e^{i\theta}`.

    Idempotent, not linear; keeps the norm for an orthonormal basis but discards the in-plane phase
    of each token. Source: Standard Angular Steering (SAS), the baseline of arXiv 2601.19375.
    """
    return _moved(h, plane, lambda z, unit: unit * z.abs() - z, phase(angle, h))


def rotate_to_if_aligned(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""As :func:`rotate_to` where :math:`p_1 > 0`, else unchanged.

    Source: Adaptive Angular Steering (AAS), the baseline of arXiv 2601.19375.
    """

    def change(z: Tensor, unit: Amount) -> Tensor:
        return torch.where(z.real > 0, unit * z.abs() - z, 0.0)

    return _moved(h, plane, change, phase(angle, h))


def set_angle(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength, magnitude: float | int = 1.0
) -> Float[Tensor, "*batch d_model"]:
    r"""Replace the in-plane part: :math:`z \leftarrow m e^{i\theta}`, constant ``m``.

    Keeps neither the norm nor the phase. Source: the ablation "no norm preservation" of
    arXiv 2601.19375.
    """
    return _moved(h, plane, lambda z, target: target - z, magnitude * phase(angle, h))


def add(
    h: Float[Tensor, "*batch d_model"], plane: Plane, alpha: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Shift along ``b1``: :math:`p_1 \leftarrow p_1 + \alpha`, in units of the activation.

    Source: Activation Addition, arXiv 2308.10248, with the unit direction ``b1``.
    """
    return _moved(h, plane, lambda z, shift: shift + 0 * z, per_row(alpha, h))


def ablate(h: Float[Tensor, "*batch d_model"], plane: Plane) -> Float[Tensor, "*batch d_model"]:
    r"""Remove the component along ``b1``: :math:`p_1 \leftarrow 0`, or :math:`z \leftarrow i p_2`.

    Linear and idempotent. Source: Directional Ablation, arXiv 2406.11717.
    """
    return _moved(h, plane, lambda z: -z.real + 0j)


def reflect(h: Float[Tensor, "*batch d_model"], plane: Plane) -> Float[Tensor, "*batch d_model"]:
    r"""Mirror at the hyperplane orthogonal to ``b1``: :math:`p_1 \leftarrow -p_1`.

    That is :math:`h - 2 (h\cdot b_1) b_1`, or :math:`z \leftarrow -\bar z`. Linear, its own
    inverse, keeps the norm. Source: Householder, J. ACM 5 (1958); the first of the two steps of
    Householder Pseudo-Rotation, arXiv 2409.10053, which takes it where a probe tells it to.
    """
    return _moved(h, plane, lambda z: -2 * z.real + 0j)


def rotate_toward(
    h: Float[Tensor, "*batch d_model"], plane: Plane, angle: Strength
) -> Float[Tensor, "*batch d_model"]:
    r"""Turn the whole activation toward ``b1``, in the plane of ``h`` and ``b1``.

    With :math:`\varphi` the angle between the two and :math:`u` the unit vector along
    :math:`h - (h\cdot b_1)\, b_1`,

    .. math:: h \leftarrow \|h\| (\cos(\varphi - \theta)\, b_1 + \sin(\varphi - \theta)\, u).

    Keeps the norm; not linear; ``b2`` plays no part, and what is orthogonal to ``b1`` keeps its
    direction but not its length. A turn by :math:`\theta > \varphi` goes past ``b1`` and on along
    the same circle, a negative one turns away. Angles add as long as the first turn stops short of
    :math:`\pm b_1`: beyond it, "toward ``b1``" is the way back. An activation parallel to ``b1``
    (to within the 1e-5 by which a basis may deviate) spans no plane with it in which to turn, and
    is returned unchanged.

    Source: Spherical Steering, arXiv 2602.08169: rotation along the geodesic toward a direction,
    here by a given angle and without its confidence gate.

    >>> import math, torch
    >>> plane = Plane(torch.tensor([1., 0., 0.]), torch.tensor([0., 1., 0.]))
    >>> rotate_toward(torch.tensor([[0., 0., 5.]]), plane, math.pi / 2).round(decimals=4)
    tensor([[5., 0., 0.]])
    """
    b1 = plane.b1.to(h.device, wide_dtype(h))

    def edit(wide: Tensor, unit: complex | Tensor) -> Tensor:
        x = wide @ b1
        rest = torch.addcmul(wide, x.unsqueeze(1), b1, value=-1)
        skew = rest @ b1  # what rounding left of b1, which tells beside a short rest
        x = x + skew
        # Of the rest itself: ‖h‖² − x² loses the digits of a small angle.
        length = torch.linalg.vector_norm(rest, dim=1)
        square = (length - skew) * (length + skew)
        parallel = square <= (ORTHONORMALITY_TOLERANCE * x) ** 2
        radius = torch.where(parallel, 1.0, square).sqrt()
        # The change, not the sum of new parts: exact zeros at angle zero.
        across = (unit.real - 1) - unit.imag * x / radius
        along = (unit.real - 1) * x + unit.imag * radius - across * skew
        along, across = (torch.where(parallel, 0.0, c).unsqueeze(1) for c in (along, across))
        return torch.addcmul(wide, across, rest).addcmul_(along, b1)

    return edited(h, edit, phase(angle, h))


def phase(angle: Strength, h: Float[Tensor, "*batch d_model"]) -> complex | Complex[Tensor, "row"]:
    r""":math:`e^{i\theta}`: a number, or one per row of ``h``."""
    theta = per_row(angle, h)
    return torch.exp(1j * theta) if isinstance(theta, Tensor) else cmath.exp(1j * theta)


def _moved(h: Tensor, plane: Plane, change: Callable[..., Tensor], *strengths: Amount) -> Tensor:
    """``h`` with ``change(z, *strengths)`` added to its in-plane coordinates ``z``.

    The change rather than the new coordinates, whose difference to the old would lose digits: what
    stays as it is changes by exact zeros.
    """
    basis = plane.basis.to(h.device, wide_dtype(h))

    def edit(wide: Tensor, *strengths: Amount) -> Tensor:
        z = torch.view_as_complex(wide @ basis.T)
        added = torch.view_as_real(change(z, *strengths))
        if wide.numel() <= SMALL:
            return torch.addmm(wide, added, basis)
        # For many rows a matrix product over two columns takes three times as long as this.
        x, y = added.split(1, dim=1)
        return torch.addcmul(wide, x, basis[0]).addcmul_(y, basis[1])

    return edited(h, edit, *strengths)
