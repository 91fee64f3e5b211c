"""Planes whose basis is not orthonormal, as bfloat16 leaves it, and steering with them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.norm_audit.conditions import BENT, EXACT, ROUNDED
from ss_lens import Plane
from ss_lens.geometry.blockwise import widened
from ss_lens.geometry.operators import (
    Ablate,
    Add,
    Operator,
    RotateBy,
    RotateTo,
    RotateToIfAligned,
)

PUBLISHED_GRAM = ((1.00604, -0.00378), (-0.00378, 1.00204))
"""``B Bᵀ`` of the plane published for Llama-3.2-1B-Instruct, of three the most bent."""
DENSE = (RotateBy, RotateTo, RotateToIfAligned, Ablate, Add)
"""Operators whose procedure the code published with arXiv 2601.19375 has, in the model's dtype."""
_COORDINATES = Plane(*torch.eye(2, dtype=torch.float64).unbind())


def orthonormal_basis(plane: Plane) -> Float[Tensor, "2 d_model"]:
    """The plane's basis to the precision of float64: ``Plane`` holds it to that of float32."""
    b1, b2 = plane.basis.double().unbind()
    b1 = b1 / b1.norm()
    b2 = b2 - (b2 @ b1) * b1
    return torch.stack((b1, b2 / b2.norm()))


def bases(exact: Float[Tensor, "2 d_model"]) -> dict[str, Float[Tensor, "2 d_model"]]:
    """The basis as it is, rounded once to bfloat16, and bent as much as published ones are.

    Rounding alone would leave the three published bases that the tests read with ``|b1·b2|`` below
    5e-4; they have 1.7e-3 to 3.8e-3 (Gram–Schmidt in bfloat16 leaves as much). The last is
    the nearest basis of the same plane with :data:`PUBLISHED_GRAM`.
    """
    values, vectors = torch.linalg.eigh(torch.tensor(PUBLISHED_GRAM, dtype=exact.dtype))
    root = vectors @ values.sqrt().diag() @ vectors.T
    return {EXACT: exact, ROUNDED: exact.bfloat16(), BENT: root @ exact}


def apply_with_basis(
    operator: Operator, h: Float[Tensor, "row d_model"], basis: Float[Tensor, "2 d_model"]
) -> Float[Tensor, "row d_model"]:
    """The operator's own map with a basis that ``Plane`` would refuse: ``h + (p′ − p) B``.

    ``p = h Bᵀ`` are the coordinates that this basis gives, ``p′`` what the operator makes of them.
    """
    wide = widened(h)
    b1, b2 = basis.to(wide)
    first = wide @ b1
    if not operator.stays_in_plane:  # in a plane of its own: b1 and the rest of h
        rest = wide - first.unsqueeze(1) * b1
        second = rest.norm(dim=1)
        b2 = rest / second.unsqueeze(1)
    else:
        second = wide @ b2
    p = torch.stack((first, second), dim=1)
    x, y = (operator.apply(p, _COORDINATES) - p).split(1, dim=1)
    return (wide + x * b1 + y * b2).to(h.dtype)


def apply_as_published(
    operator: Operator, h: Float[Tensor, "row d_model"], basis: Float[Tensor, "2 d_model"]
) -> Float[Tensor, "row d_model"]:
    """The procedures of arXiv 2601.19375 with ``d × d`` matrices, all of it in the dtype of ``h``.

    With :math:`P = b_1 b_1^T + b_2 b_2^T`; the radius of SAS is :math:`‖Ph‖`, which for a basis
    that is not orthonormal is not quite the ``‖p‖`` of :func:`apply_with_basis`.
    """
    b1, b2 = basis.to(h.dtype)
    along = (h @ b1).unsqueeze(1)
    if isinstance(operator, Add):
        assert isinstance(operator.alpha, float)
        return h + operator.alpha * b1
    if isinstance(operator, Ablate):
        return h - along * b1
    assert isinstance(operator, RotateBy | RotateTo | RotateToIfAligned)
    assert isinstance(operator.angle_deg, float)
    theta = math.radians(operator.angle_deg)
    cos, sin = math.cos(theta), math.sin(theta)
    projection = torch.outer(b1, b1) + torch.outer(b2, b2)
    inside = h @ projection.T
    if isinstance(operator, RotateBy):
        turn = cos * projection + sin * (torch.outer(b2, b1) - torch.outer(b1, b2))
        return h - inside + h @ turn.T
    turned = h - inside + inside.norm(dim=1, keepdim=True) * (cos * b1 + sin * b2)
    return turned if isinstance(operator, RotateTo) else torch.where(along > 0, turned, h)
