r"""What an operator at a norm's output is in the weights that read it.

A linear operator of the plane with rows :math:`B = (b_1, b_2)` maps an activation to
:math:`h + B^\top D^\top B h`, where the rows of :math:`D` say how the in-plane coordinates of
:math:`b_1` and :math:`b_2` change. So a weight that reads h becomes

.. math:: W \leftarrow W + (W B^\top D^\top)\, B,

a change of rank 2 whose right factor is the plane itself, the same for every reader. A constant
shift s in the plane adds :math:`W B^\top s` to the reader's bias. All of it is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.core.errors import UserError
from ss_lens.geometry.operators import Operator
from ss_lens.geometry.plane import Plane

RANK = 2
Kind = Literal["lora", "merged", "gguf-lora", "dial", "bank"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one weight ``[out, in]`` by the product ``b @ a``."""

    a: Float[Tensor, "rank in"]
    b: Float[Tensor, "out rank"]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An affine map of the in-plane coordinates, for row vectors: ``z → z + z @ change + shift``.

    Attributes:
        plane: where it acts.
        change: the map without the identity; row i is what happens to basis vector i.
        shift: the constant part, zero for a linear operator.
    """

    plane: Plane
    change: Float[Tensor, "2 2"]
    shift: Float[Tensor, "2"]

    @classmethod
    def of(cls, operator: Operator, plane: Plane) -> LinearMap:
        """The map of ``operator``, from what it does to the two basis vectors and to zero.

        Raises:
            UserError: as :func:`check_affine`.
        """
        check_affine(operator)
        # In coordinates of the plane the basis is exactly orthonormal, whatever its rounding is.
        unit = torch.eye(2, dtype=torch.float64)
        in_itself = Plane(*unit.unbind())
        shift = operator.apply(torch.zeros(1, 2, dtype=torch.float64), in_itself)[0]
        change = torch.stack([operator.apply(row[None], in_itself)[0] - shift for row in unit])
        return cls(plane, change - unit, shift)

    def factors(self, weight: Float[Tensor, "out in"]) -> LowRank:
        """What is added to a weight that reads the norm's output, in float64."""
        basis = self._basis(weight)
        return LowRank(basis, (weight.double() @ basis.T) @ self.change.T.to(weight.device))

    def bias(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out"]:
        """What is added to the bias of such a weight, in float64."""
        return (weight.double() @ self._basis(weight).T) @ self.shift.to(weight.device)

    def _basis(self, weight: Tensor) -> Tensor:
        return self.plane.basis.to(weight.device).double()


def turns(plane: Plane) -> tuple[LinearMap, LinearMap]:
    r"""The two maps whose sum, weighted by cos θ − 1 and sin θ, is ``RotateBy(θ)`` without 1."""
    zero = torch.zeros(2, dtype=torch.float64)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    return LinearMap(plane, torch.eye(2, dtype=torch.float64), zero), LinearMap(
        plane, quarter, zero
    )


def check_affine(operator: Operator) -> None:
    """Raise unless weights can hold what ``operator`` does.

    Raises:
        UserError: the operator is not linear in the activation (nor a constant shift), leaves the
            plane, or has one strength per batch row.
    """
    reason = None
    if not operator.stays_in_plane:
        reason = "it turns each activation in a plane of its own, which no fixed matrix does"
    elif not operator.is_linear and operator.lipschitz > 0:
        reason = "what it does is not linear in the activation, and a weight matrix is"
    if reason:
        exact = ", ".join(
            kind.__name__ for kind in Operator.kinds() if kind.is_linear and kind.stays_in_plane
        )
        raise UserError(
            f"{operator} cannot be exported: {reason}. Use one of {exact}, or Add where every "
            "reader has a bias."
        )
    if operator.rows is not None:
        raise UserError(
            f"{operator} has {operator.rows} strengths, one for each batch row, expected one: "
            "weights are the same for every row. Give one number, or export kind='bank', which "
            "writes an adapter for each angle."
        )


def check_kind(operator: Operator, kind: Kind) -> None:
    """Raise where ``operator`` shifts by a constant, which an adapter of this kind cannot hold."""
    if not operator.is_linear and kind != "merged":
        raise UserError(
            f"{operator} cannot be exported as {kind!r}: it adds a constant, which an adapter of "
            "factors has no place for. Use kind='merged', which adds it to the readers' biases."
        )
