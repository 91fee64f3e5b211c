"""Ways to complete the global direction to a plane: frozen values that name a method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.activations.activations import Evidence
from ss_lens.calibration.candidates import Candidates, first_principal_component
from ss_lens.calibration.global_direction import GlobalDirection
from ss_lens.calibration.plane_search.energy import Target, matched_draw
from ss_lens.calibration.plane_search.grassmann import Separation, ascend
from ss_lens.calibration.site_selection import Explicit
from ss_lens.core.checks import check_one_of, check_positive, check_seed, check_whole
from ss_lens.core.errors import NotApplicable
from ss_lens.geometry.plane import Plane

LEAST_ANGLE_DEG = 1.0
"""Below this angle between two directions, noise decides the plane that they span."""


@dataclass(frozen=True, eq=False)
class FittedPlane:
    """A plane and what fitting it measured (each method says what; empty for most)."""

    plane: Plane
    report: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PC1:
    """``b2`` from the first principal component of the centred candidates.

    Its sign is a convention of the coordinates (the largest entry is positive), which gives the
    published planes. Source: arXiv 2601.19375, steering plane.
    """

    def build(
        self, direction: GlobalDirection, candidates: Candidates, evidence: Evidence
    ) -> FittedPlane:
        """Raises a :class:`UserError` for fewer than three candidates."""
        component = first_principal_component(candidates)
        return FittedPlane(Plane.from_span(direction.vector, component))


@dataclass(frozen=True)
class RandomSecond:
    """``b1`` kept, ``b2`` drawn uniformly at right angles to it: the control of ``b2``.

    Attributes:
        seed: of the draw; there is no default, so that a draw can always be repeated.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        check_seed("random plane", self.seed)

    def build(
        self, direction: GlobalDirection, candidates: Candidates, evidence: Evidence
    ) -> FittedPlane:
        (drawn,) = _gaussian_rows(self.seed, 1, len(direction.vector))
        return FittedPlane(Plane.from_span(direction.vector, drawn))


@dataclass(frozen=True)
class RandomPlane:
    """Both axes drawn uniformly: the control of the whole plane.

    Its ``b1`` is not the global direction and need not separate the classes anywhere, so select
    sites without it: uniformly, by name, or at random with a count.

    Attributes:
        seed: of the draw; there is no default, so that a draw can always be repeated.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        check_seed("random plane", self.seed)

    def build(
        self, direction: GlobalDirection, candidates: Candidates, evidence: Evidence
    ) -> FittedPlane:
        first, second = _gaussian_rows(self.seed, 2, len(direction.vector))
        return FittedPlane(Plane.from_span(first, second))


@dataclass(frozen=True)
class MatchedRandomPlane:
    r"""Both axes drawn, with the in-plane energy of PC1's plane: the control of the edit's size.

    A rotation by :math:`\theta` changes an activation by :math:`2 \sin(\theta/2)` times the length
    of its part in the plane. A uniformly drawn plane holds next to nothing of an activation, so
    turning in it hardly changes anything (:class:`RandomPlane`). This one holds as much of the
    unit-normalised activations as ``b1`` and PC1 do, on average over prompts of both classes and
    over ``sites``; see :mod:`ss_lens.calibration.plane_search.energy`. Select the sites as for
    :class:`RandomPlane`.

    Report: ``energy``, ``target_energy`` (of PC1's plane) and ``isotropic_energy`` (of a uniform
    draw, on average), as shares of the activations' own; ``exponent``, by which the draw leans to
    directions of high energy.

    Attributes:
        seed: of the draw; there is no default, so that a draw can always be repeated.
        sites: where energies are matched, like ``"L3.ln1_out,L5.ln2_out"``: those that are to be
            steered. ``None`` is all calibrated sites.
    """

    seed: int | None = None
    sites: str | None = None

    def __post_init__(self) -> None:
        check_seed("random plane", self.seed)
        if self.sites is not None:
            object.__setattr__(self, "sites", Explicit(self.sites).sites)

    def build(
        self, direction: GlobalDirection, candidates: Candidates, evidence: Evidence
    ) -> FittedPlane:
        """Raises a :class:`UserError` where no drawn plane holds as much, and as PC1 does."""
        own = PC1().build(direction, candidates, evidence).plane
        mask = None if self.sites is None else Explicit(self.sites).select(evidence, own).mask
        target = Target.of(evidence.train, mask, own.basis)
        drawn = matched_draw(target.spectrum, target.energy, np.random.default_rng(self.seed))
        return FittedPlane(
            Plane.from_span(*drawn.basis),
            {
                "energy": drawn.energy,
                "target_energy": target.energy,
                "isotropic_energy": 2 / len(direction.vector),
                "exponent": drawn.exponent,
            },
        )


@dataclass(frozen=True)
class NextBest:
    """``b2`` from the candidate with the next-highest score of the global choice.

    Skipped are excluded sites, the direction's own site, and candidates within 1° of the line
    through ``b1``, which would span a plane with it by their noise alone. After a consensus, which
    is no site's candidate, the first candidate that is not skipped is taken.

    Report: ``site_index`` (into the calibrated sites), ``score``, ``angle_deg`` between the
    candidate and ``b1`` (0 to 180), and ``skipped``, the number of better ones within 1°.
    """

    def build(
        self, direction: GlobalDirection, candidates: Candidates, evidence: Evidence
    ) -> FittedPlane:
        """Raises a :class:`UserError` when every other candidate is within 1° of ``b1``."""
        b1 = direction.vector.double()
        scores = torch.where(candidates.valid, direction.scores, -torch.inf)
        skipped = 0
        for i in scores.argsort(descending=True, stable=True).tolist():
            if not candidates.valid[i] or candidates.sites[i] == direction.site:
                continue
            angle = _angle_deg(b1, candidates.directions[i].double())
            if LEAST_ANGLE_DEG <= angle <= 180 - LEAST_ANGLE_DEG:
                return FittedPlane(
                    Plane.from_span(direction.vector, candidates.directions[i]),
                    {
                        "site_index": float(i),
                        "score": float(direction.scores[i]),
                        "angle_deg": angle,
                        "skipped": float(skipped),
                    },
                )
            skipped += 1
        raise NotApplicable(
            f"no other candidate spans a plane with the direction: {skipped} lie within "
            f"{LEAST_ANGLE_DEG:g}° of its line. Capture more layers or streams, or use "
            "RandomSecond(seed=0)."
        )


@dataclass(frozen=True)
class ClassMeans:
    r"""The plane through ``b1`` and the midpoint of the class means at the direction's site.

    The means :math:`u^P, u^N` are of the unit-normalised activations. Where ``b1`` is along
    :math:`u^P - u^N`, the plane holds both means exactly. A difference of means of activations of
    unequal length is not quite along it, and the report says how far the means then lie outside:
    ``positive_outside`` and ``negative_outside``, in units of the unit-normalised activations.
    """

    def build(
        self, direction: GlobalDirection, candidates: Candidates, evidence: Evidence
    ) -> FittedPlane:
        """Raises a :class:`UserError` for a direction that belongs to no site."""
        if direction.site is None:
            raise NotApplicable(
                f"{self} needs a direction that belongs to a site, since it reads the class means "
                "there; a consensus has none. Use choice=MaxMeanCosine() or AtSite(...)."
            )
        units = [h.double() for h in evidence.train.at(direction.site)]
        positive, negative = ((u / u.norm(dim=-1, keepdim=True)).mean(dim=0) for u in units)
        plane = Plane.from_span(direction.vector, (positive + negative) / 2)
        basis = plane.basis.double()
        outside = {
            f"{name}_outside": float((mean - basis.T @ (basis @ mean)).norm())
            for name, mean in (("positive", positive), ("negative", negative))
        }
        return FittedPlane(plane, outside)


@dataclass(frozen=True)
class Grassmann:
    """The plane of highest class separation near PC1's.

    The criterion is in :mod:`ss_lens.calibration.plane_search.grassmann`.

    ``b1`` is the unit vector of the plane closest to the global direction, so that angle 0 keeps
    its meaning; ``b2`` is turned so that its inner product with PC1's is not negative. Held-out
    prompts are measured and never chosen by.

    Report: ``objective_before`` (PC1's plane) and ``objective_after`` on the training prompts,
    ``held_out_before`` and ``held_out_after`` with the same shrinkage on the held-out ones,
    ``cos_b1`` between ``b1`` and the global direction, and ``best_step``, the place of the plane on
    the path of ``steps`` steps.

    Attributes:
        steps: of the ascent.
        learning_rate: length of its first steps in radians.
        shrinkage: of the within-class covariances: ``ledoit_wolf``, or ``none`` where there are
            more prompts than dimensions.
    """

    steps: int = 200
    learning_rate: float | int = 0.2
    shrinkage: Literal["ledoit_wolf", "none"] = "ledoit_wolf"

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, at_least=1)
        check_positive("learning_rate", self.learning_rate)
        check_one_of("shrinkage", self.shrinkage, ("ledoit_wolf", "none"))

    def build(
        self, direction: GlobalDirection, candidates: Candidates, evidence: Evidence
    ) -> FittedPlane:
        """Raises a :class:`UserError`.

        Without geoopt or held-out activations, with fewer than three candidates, and with
        ``shrinkage="none"`` for a singular covariance.
        """
        held_out = evidence.needed("held_out", by=self)
        start = PC1().build(direction, candidates, evidence).plane
        none = None
        if self.shrinkage == "none":
            self._check_full_rank(evidence)
            none = torch.zeros(int(candidates.valid.sum()), dtype=torch.float64)
        train = Separation.of(evidence.train, candidates.valid, none)
        unseen = Separation.of(held_out, candidates.valid, train.shrinkage)
        before = start.basis.double().T
        after, step = ascend(train, before, self.steps, self.learning_rate)
        plane = _oriented(after, direction.vector.double(), start.b2.double())
        return FittedPlane(
            plane,
            {
                "objective_before": train(before),
                "objective_after": train(after),
                "held_out_before": unseen(before),
                "held_out_after": unseen(after),
                "cos_b1": float(plane.b1.double() @ direction.vector.double()),
                "best_step": float(step),
            },
        )

    def _check_full_rank(self, evidence: Evidence) -> None:
        acts = evidence.train
        n, d = len(acts.positive) + len(acts.negative), acts.positive.shape[-1]
        if n - 2 < d:
            raise NotApplicable(
                f"the within-class covariance of {n} prompts in {d} dimensions is singular, so the "
                "separation has no highest value; use shrinkage='ledoit_wolf', or at least "
                f"{d + 2} prompts."
            )


PlaneMethod = (
    PC1 | RandomSecond | RandomPlane | MatchedRandomPlane | NextBest | ClassMeans | Grassmann
)


def _gaussian_rows(seed: int | None, rows: int, d_model: int) -> Float[Tensor, "rows d_model"]:
    """From NumPy's generator, whose numbers do not depend on the platform."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, d_model)))


def _angle_deg(a: Float[Tensor, "d_model"], b: Float[Tensor, "d_model"]) -> float:
    """By the half-angle formula, which keeps its digits for small angles."""
    return float(torch.rad2deg(2 * torch.atan2((a - b).norm(), (a + b).norm())))


def _oriented(
    basis: Float[Tensor, "d_model 2"],
    direction: Float[Tensor, "d_model"],
    towards: Float[Tensor, "d_model"],
) -> Plane:
    """The plane with ``b1`` closest to ``direction`` and ``b2`` on the side of ``towards``."""
    x, y = (basis.T @ direction).tolist()
    b1 = basis @ basis.new_tensor([x, y])
    if b1.norm() <= 1e-6:
        raise NotApplicable(
            "the optimised plane is at right angles to the global direction, so that angle 0 has "
            "no meaning in it; use fewer steps or a smaller learning_rate."
        )
    b2 = basis @ basis.new_tensor([-y, x])
    return Plane.from_span(b1, -b2 if b2 @ towards < 0 else b2)
