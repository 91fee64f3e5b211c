"""An oriented plane in activation space, and the coordinates of an activation in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.core.checks import check_is
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_json
from ss_lens.core.shown import card, in_lines
from ss_lens.geometry.blockwise import full_precision, widened

ORTHONORMALITY_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class Plane:
    """An oriented 2D plane: ``b1`` is angle 0, ``b2`` is angle 90°.

    Raises:
        UserError: the basis is not finite, or not orthonormal to within 1e-5 (it says by how much).
    """

    b1: Float[Tensor, "d_model"]
    b2: Float[Tensor, "d_model"]

    def __post_init__(self) -> None:
        for name, vector in (("b1", self.b1), ("b2", self.b2)):
            check_is(name, vector, (Tensor,), "a vector, as a torch tensor")
        if self.b1.ndim != 1 or self.b1.shape != self.b2.shape:
            raise UserError(
                f"b1 and b2 must be two vectors of one length; got the shapes "
                f"{tuple(self.b1.shape)} and {tuple(self.b2.shape)}."
            )
        with torch.inference_mode(False):  # what is made there could carry no gradient anywhere
            for name, vector in (("b1", self.b1), ("b2", self.b2)):
                if vector.is_inference():
                    object.__setattr__(self, name, vector.clone())
            basis = self.basis.cpu().double()
        if not torch.isfinite(basis).all():
            raise UserError("the plane's basis holds NaN or infinity; calibrate again.")
        deviation = (basis @ basis.T - torch.eye(2, dtype=basis.dtype)).abs().max().item()
        if deviation > ORTHONORMALITY_TOLERANCE:
            raise UserError(
                f"the plane's basis is not orthonormal: it deviates by {deviation:.2e}, allowed is "
                f"{ORTHONORMALITY_TOLERANCE:.0e}. Use Plane.from_span(b1, b2) to orthonormalise it."
            )

    def __repr__(self) -> str:
        return in_lines(f"Plane of {self.b1.numel()} dimensions", self._facts)

    def _repr_html_(self) -> str:
        return card(f"Plane of {self.b1.numel()} dimensions", self._facts)

    @property
    def _facts(self) -> dict[str, str]:
        basis = self.basis.detach().cpu()
        wide = basis.double()
        deviation = float((wide @ wide.T - torch.eye(2).double()).abs().max())
        strongest = [int(row.abs().argmax()) for row in wide]
        return {
            "basis": f"orthonormal to within {deviation:.1e}",
            "largest": ", ".join(
                f"{name}[{i}] = {float(row[i]):+.3f}"
                for name, i, row in zip(("b1", "b2"), strongest, wide, strict=True)
            ),
            "numbers": f"{str(basis.dtype).removeprefix('torch.')} on {self.b1.device}",
            "digest": sha256_of_json(basis.tolist())[:12],
        }

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
    wide = widened(h)
    with full_precision(h):
        return wide @ plane.basis.to(wide).T
