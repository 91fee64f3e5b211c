"""Ways to choose the global direction among the candidates: frozen values that name a choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.activations.activations import Activations, Evidence
from ss_lens.calibration.candidates import (
    Candidates,
    global_direction,
    mean_cosine,
)
from ss_lens.calibration.separation import auroc, cohens_d, first_singular_direction
from ss_lens.core.checks import check_flag
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.models.sites import Site

CANCELLATION_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class GlobalDirection:
    """The direction that becomes ``b1``.

    Attributes:
        vector: of length one.
        site: whose candidate it is; ``None`` for a consensus of all.
        scores: one number per site that the choice was decided by (each choice says which); NaN at
            excluded sites.

    Raises:
        UserError: the vector is not finite.
    """

    vector: Float[Tensor, "d_model"]
    site: Site | None
    scores: Float[Tensor, "site"]

    def __post_init__(self) -> None:
        if not self.vector.isfinite().all():
            raise UserError(
                "the global direction holds NaN or infinity; expected finite entries. Calibrate "
                "again."
            )

    def __repr__(self) -> str:
        known = self.scores[self.scores.isfinite()]
        among = f"{float(known.min()):.3g} to {float(known.max()):.3g}" if len(known) else "none"
        return f"GlobalDirection(of {self.site or 'all sites'}, scores {among})"


@dataclass(frozen=True)
class MaxMeanCosine:
    """The candidate with the highest mean cosine similarity to the others, which are its scores.

    Source: arXiv 2601.19375, global direction.
    """

    def choose(self, candidates: Candidates, evidence: Evidence) -> GlobalDirection:
        return _candidate(candidates, global_direction(candidates), mean_cosine(candidates))


@dataclass(frozen=True)
class AtSite:
    """The candidate of a named site. Scores: the cosine of each candidate to it.

    Attributes:
        site: written like ``L12.ln1_out``.
    """

    site: str

    def __post_init__(self) -> None:
        Site.parse(self.site)

    def choose(self, candidates: Candidates, evidence: Evidence) -> GlobalDirection:
        """Raises a :class:`UserError` for a site that is not calibrated, or excluded."""
        site = Site.parse(self.site)
        if site not in candidates.sites:
            raise UserError(
                f"{self} names a site that is not calibrated; calibrated are "
                f"{candidates.sites[0]} … {candidates.sites[-1]}."
            )
        if site in candidates.excluded:
            raise NotApplicable(
                f"{self} names a site without a direction; name one that is not excluded "
                f"(excluded: {', '.join(map(str, candidates.excluded))})."
            )
        index = candidates.sites.index(site)
        return _candidate(candidates, index, _cosines_to(candidates, candidates.directions[index]))


@dataclass(frozen=True)
class BestSeparation:
    """The candidate that separates the classes best on held-out prompts at its own site.

    Scores: the area under the ROC curve of the unit-normalised activations' projections onto the
    site's candidate (:func:`auroc`). Ties (several sites may reach 1) go to the larger standardised
    difference of the mean projections (Cohen's d), then to the first site.
    """

    def choose(self, candidates: Candidates, evidence: Evidence) -> GlobalDirection:
        """Raises a :class:`UserError` without held-out activations."""
        held_out = evidence.needed("held_out", by=self)
        positive, negative = _projections_at_own_site(candidates, held_out)
        area, gap = auroc(positive, negative), cohens_d(positive, negative)
        area[~candidates.valid] = torch.nan
        best = area == area[candidates.valid].max()
        index = int(torch.where(best, gap, -torch.inf).argmax())
        return _candidate(candidates, index, area.float())


@dataclass(frozen=True)
class Consensus:
    """First right-singular vector of the candidates: what they share across the layers.

    The unit vector with the largest sum of squared cosines to the candidates, oriented so that its
    mean cosine to them is positive. Scores: the cosine of each candidate to it.

    Attributes:
        weighted: multiply each candidate by its mean cosine similarity to the others, clipped at
            zero, so that those which disagree with the rest count little or nothing.
    """

    weighted: bool = True

    def __post_init__(self) -> None:
        check_flag("weighted", self.weighted)

    def choose(self, candidates: Candidates, evidence: Evidence) -> GlobalDirection:
        """Raises a :class:`UserError` for fewer than two candidates, or when they cancel out."""
        rows = candidates.directions[candidates.valid].double()
        if len(rows) < 2:
            raise NotApplicable(
                f"{self} needs at least 2 sites with a direction, got {len(rows)}; capture more "
                "layers or streams, or use AtSite(...)."
            )
        if self.weighted:
            weights = mean_cosine(candidates)[candidates.valid].double().clamp(min=0)
            if not weights.any():
                raise NotApplicable(
                    f"{self} finds no candidate that agrees with the others on average; there is "
                    "no consensus. Use MaxMeanCosine() or AtSite(...)."
                )
            shared = first_singular_direction(weights.unsqueeze(-1) * rows, str(self))
        else:
            shared = first_singular_direction(rows, str(self))
        agreement = (rows @ shared).mean()
        if agreement.abs() <= CANCELLATION_TOLERANCE:
            raise NotApplicable(
                f"{self} has no sign: the candidates lie on both sides of it alike. Use "
                "MaxMeanCosine() or AtSite(...)."
            )
        vector = (shared * agreement.sign()).float()
        return GlobalDirection(vector, None, _cosines_to(candidates, vector))


GlobalChoice = MaxMeanCosine | AtSite | BestSeparation | Consensus


def _candidate(
    candidates: Candidates, index: int, scores: Float[Tensor, "site"]
) -> GlobalDirection:
    return GlobalDirection(candidates.directions[index], candidates.sites[index], scores)


def _cosines_to(candidates: Candidates, vector: Float[Tensor, "d_model"]) -> Float[Tensor, "site"]:
    cosines = candidates.directions.double() @ vector.double()
    return torch.where(candidates.valid, cosines, torch.nan).float()


def _projections_at_own_site(
    candidates: Candidates, acts: Activations
) -> tuple[Float[Tensor, "positive site"], Float[Tensor, "negative site"]]:
    directions = candidates.directions.double()
    positive, negative = (
        torch.einsum("nsd,sd->ns", h.double(), directions) / h.double().norm(dim=-1)
        for h in (acts.positive, acts.negative)
    )
    return positive, negative
