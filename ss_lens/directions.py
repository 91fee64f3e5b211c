"""One candidate direction per site, and the global direction among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ss_lens.activations import Activations
from ss_lens.errors import UserError
from ss_lens.sites import Site

AGREEMENT_TOLERANCE = 1e-5
"""Class means closer than this share of their length are equal up to float32 rounding."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Unit directions per site; rows of excluded sites (``~valid``) are zero."""

    directions: Float[Tensor, "site d_model"]
    valid: Bool[Tensor, "site"]
    sites: tuple[Site, ...]

    @property
    def excluded(self) -> tuple[Site, ...]:
        """Sites at which the two class means agree, so that there is no direction."""
        return tuple(site for site, ok in zip(self.sites, self.valid, strict=True) if not ok)


def difference_of_means(acts: Activations) -> Candidates:
    r"""Normalised difference of the class means at each site.

    :math:`d_k = \bar h_k^P - \bar h_k^N`, divided by its norm. A site whose means agree (block 0's
    ``ln1_out``, when all prompts end in the same template tokens) has no direction: it is excluded
    and reported. Source: arXiv 2406.11717; arXiv 2601.19375, candidate directions.

    Raises:
        UserError: the means agree at every site.
    """
    means = [h.mean(dim=0, dtype=torch.float64) for h in (acts.positive, acts.negative)]
    difference = means[0] - means[1]
    length = difference.norm(dim=-1)
    scale = torch.stack([mean.norm(dim=-1) for mean in means]).amax(dim=0)
    valid = length > AGREEMENT_TOLERANCE * scale
    if not valid.any():
        raise UserError(
            f"the two classes of {acts.spec.dataset_name!r} have the same mean activation at every "
            "site, so there is no direction anywhere; the classes must differ where they are read "
            f"(position {acts.spec.position})."
        )
    unit = torch.zeros_like(difference)
    unit[valid] = difference[valid] / length[valid].unsqueeze(-1)
    return Candidates(unit.float(), valid, acts.sites)


def cosine_matrix(candidates: Candidates) -> Float[Tensor, "site site"]:
    """Cosine similarity of every pair of candidates; NaN where a site is excluded."""
    directions = candidates.directions.double()
    cosines = directions @ directions.T
    cosines[~candidates.valid] = torch.nan
    cosines[:, ~candidates.valid] = torch.nan
    return cosines.float()


def mean_cosine(candidates: Candidates) -> Float[Tensor, "site"]:
    """Mean cosine similarity of each candidate to the *other* candidates; NaN where excluded."""
    cosines = cosine_matrix(candidates).double().clone()
    cosines.fill_diagonal_(torch.nan)
    others = cosines.nanmean(dim=-1)
    if int(candidates.valid.sum()) == 1:
        others[candidates.valid] = 1.0  # a lone candidate agrees with all there is
    return others.float()


def global_direction(candidates: Candidates) -> int:
    """Index of the candidate with the highest mean cosine similarity to the others.

    Source: arXiv 2601.19375, global direction.
    """
    agreement = mean_cosine(candidates)
    return int(torch.where(candidates.valid, agreement, -torch.inf).argmax())


def first_principal_component(candidates: Candidates) -> Float[Tensor, "d_model"]:
    """First principal component of the centred candidates, its largest entry made positive.

    The sign is a convention that reproduces the published planes; a component has none of its own.

    Raises:
        UserError: fewer than three candidates, whose differences span no plane with the direction.
    """
    directions = candidates.directions[candidates.valid].double()
    if len(directions) < 3:
        raise UserError(
            f"a principal component needs at least 3 sites with a direction, got "
            f"{len(directions)}. Capture more layers or streams."
        )
    centred = directions - directions.mean(dim=0)
    component = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    return (component * component[component.abs().argmax()].sign()).float()
