"""How much of the activations lies in a plane, and random planes that hold a given share of it.

A rotation by θ changes an activation by 2 sin(θ/2) times the length of its part in the plane, so a
plane that holds more of the activations makes the larger edit, whatever it means. In-plane energy
is the mean of ‖p‖²/‖h‖² over prompts of both classes and sites: the squared length of the part of
the unit-normalised activation in the plane. So no site counts more for its scale.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.core.errors import NotApplicable

ENERGY_TOLERANCE = 0.01
"""By at most this share may the energy of a matched plane differ from what it is to be."""
RANK_TOLERANCE = 1e-12
"""Eigenvalues below this share of the largest are rounding, and count as this share."""
LARGEST_EXPONENT = 64.0
_STEPS = 60


def unit_rows(acts: Activations, sites: torch.Tensor | None = None) -> Float[Tensor, "row d_model"]:
    """The unit-normalised activations of both classes, prompts and sites in one list, in float64.

    Args:
        acts: the activations.
        sites: a mask over their sites; ``None`` for all.
    """
    h = torch.cat((acts.positive, acts.negative))
    h = (h if sites is None else h[:, sites]).flatten(0, 1).double()
    return h / h.norm(dim=-1, keepdim=True)


def in_plane_energy(rows: Float[Tensor, "row d_model"], basis: Float[Tensor, "2 d_model"]) -> float:
    """Mean squared length of the rows' parts in the plane of an orthonormal basis."""
    return float((rows @ basis.double().T).square().sum(dim=-1).mean())


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors (columns) of the second-moment matrix of unit-length rows."""

    values: Float[Tensor, "d_model"]
    vectors: Float[Tensor, "d_model d_model"]

    @classmethod
    def of(cls, rows: Float[Tensor, "row d_model"]) -> Spectrum:
        """Decompose.

        Raises:
            NotApplicable: an activation is zero or not finite, and has no direction.
        """
        if not rows.isfinite().all():
            raise NotApplicable(
                "an activation is zero or not finite, so it has no unit length and no in-plane "
                "energy; expected finite activations. Use RandomPlane(seed=0), or other sites."
            )
        return cls(*torch.linalg.eigh(rows.T @ rows / len(rows)))

    def energy(self, coefficients: Float[Tensor, "d_model 2"]) -> float:
        """In-plane energy of an orthonormal basis that is given in the eigenvectors."""
        return float((coefficients.square() * self.values[:, None]).sum())


@dataclass(frozen=True, eq=False)
class Target:
    """What draws are matched to: the energy of a plane, and the spectrum of its activations."""

    spectrum: Spectrum
    energy: float

    @classmethod
    def of(
        cls, acts: Activations, sites: torch.Tensor | None, basis: Float[Tensor, "2 d_model"]
    ) -> Target:
        """Measure; the last result is kept beside the activations, for many draws of one.

        Args:
            acts: the activations; what is kept goes with those that they were restricted from.
            sites: a mask over their sites; ``None`` for all.
            basis: orthonormal, of the plane.
        """
        mask = None if sites is None else (*sites.tolist(),)
        asked = acts.sites, mask, basis.numpy().tobytes()
        known = _targets.get(acts.whole)
        if known is None or known[0] != asked:
            rows = unit_rows(acts, sites)
            known = asked, cls(Spectrum.of(rows), in_plane_energy(rows, basis))
            _targets[acts.whole] = known
        return known[1]


_targets: WeakKeyDictionary[Activations, tuple[Hashable, Target]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class MatchedDraw:
    """A random plane, the energy that it holds and the exponent ``k`` that it was found at."""

    basis: Float[Tensor, "2 d_model"]
    energy: float
    exponent: float


def matched_draw(spectrum: Spectrum, target: float, rng: np.random.Generator) -> MatchedDraw:
    r"""Draw a plane with an in-plane energy of ``target``.

    It is the span of :math:`S^k G`, with :math:`S` the second-moment matrix and :math:`G` Gaussian,
    ``[d_model, 2]``. At ``k = 0`` every plane is as likely as any other; the larger ``k``, the more
    the draw leans to directions of high energy. ``k`` is found by bisection for each draw. The
    first axis is drawn uniformly in the plane.

    Raises:
        NotApplicable: no exponent up to 64 brings the energy to within 1 % of ``target``.
    """
    d = len(spectrum.values)
    gaussian = spectrum.vectors.T @ torch.from_numpy(rng.standard_normal((d, 2)))
    phase = rng.uniform(0, 2 * math.pi)
    share = (spectrum.values / spectrum.values[-1]).clamp(min=RANK_TOLERANCE).log()

    def span(k: float) -> tuple[Tensor, float]:
        coefficients = _scaled_span(share * k, gaussian)
        return coefficients, spectrum.energy(coefficients)

    low, high = 0.0, 0.0
    start = span(0.0)[1]
    step = 1.0 if start < target else -1.0
    while abs(high) < LARGEST_EXPONENT and (span(high)[1] - target) * step < 0:
        low, high = high, 2 * high or step
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if (span(middle)[1] - target) * step < 0:
            low = middle
        else:
            high = middle
    coefficients, energy = span(high)
    if not abs(energy - target) <= ENERGY_TOLERANCE * target:
        raise NotApplicable(
            f"no random plane has the in-plane energy of the method's, {target:.3g} of the "
            f"unit-normalised activations: the nearest drawn has {energy:.3g}, expected within "
            f"{ENERGY_TOLERANCE:.0%}. Use RandomPlane(seed=0), or calibrate on more prompts."
        )
    turn = torch.tensor(
        [[math.cos(phase), -math.sin(phase)], [math.sin(phase), math.cos(phase)]]
    ).double()
    return MatchedDraw((spectrum.vectors @ coefficients @ turn).T, energy, high)


def _scaled_span(
    log_scales: Float[Tensor, "d_model"], drawn: Float[Tensor, "d_model 2"]
) -> Float[Tensor, "d_model 2"]:
    """Orthonormal basis of the span of ``drawn`` with its rows scaled.

    Mixed first so that the row with the largest scale is in the first column alone: otherwise that
    row would make the columns parallel, and rounding would decide their span.
    """
    scales = (log_scales - log_scales.max()).exp()[:, None]
    a, b = drawn[int(log_scales.argmax())].tolist()
    mixed = drawn @ drawn.new_tensor([[a, -b], [b, a]]) / math.hypot(a, b)
    return torch.linalg.qr(scales * mixed).Q
