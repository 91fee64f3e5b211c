"""Rotation of an activation toward a direction, each in a plane of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.geometry import ORTHONORMALITY_TOLERANCE, Plane, phase
from ss_lens.rowwise import Strength, edited, wide_dtype


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
