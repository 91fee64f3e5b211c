"""Candidate directions, one per site: how they are signed and how far they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.activations.spec import range_of
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.core.shown import listed
from ss_lens.models.sites import Site

AGREEMENT_TOLERANCE = 1e-5
"""Class means closer than this share of their length are equal up to float32 rounding."""
PERPENDICULAR_TOLERANCE = 1e-6
"""A direction whose cosine to the difference of means is below this has no sign to go by."""
UNIT_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class Candidates:
    """Unit directions per site, each pointing from the negative to the positive class.

    Attributes:
        directions: unit rows; zero at excluded sites.
        valid: which sites have a direction.
        sites: in the order of the rows.
        lengths: length of the difference of the class means before it was normalised, in units of
            the activation, whatever the method; zero at excluded sites, NaN where it is not known
            (published candidates come normalised).

    Raises:
        UserError: the parts differ in their number of sites, or a row is neither of length one nor
            an excluded site's zero.
    """

    directions: Float[Tensor, "site d_model"]
    valid: Bool[Tensor, "site"]
    sites: tuple[Site, ...]
    lengths: Float[Tensor, "site"]

    def __post_init__(self) -> None:
        counts = len(self.directions), len(self.valid), len(self.sites), len(self.lengths)
        if len(set(counts)) > 1:
            raise UserError(
                f"candidates of {counts[0]} directions, {counts[1]} marks, {counts[2]} sites and "
                f"{counts[3]} lengths do not belong together; expected one of each per site."
            )
        norms = self.directions.double().norm(dim=-1)
        for site, ok, norm in zip(self.sites, self.valid.tolist(), norms.tolist(), strict=True):
            if not math.isclose(norm, float(ok), abs_tol=UNIT_TOLERANCE * ok):
                raise UserError(
                    f"the candidate at {site} has length {norm:.6g}; expected "
                    f"{'1: divide it by its length' if ok else '0, since the site is excluded'}."
                )

    def __repr__(self) -> str:
        without = listed(self.excluded) or "no site"
        return (
            f"Candidates({len(self.sites)} sites {range_of(self.sites)}, "
            f"width {self.directions.shape[-1]}, without a direction: {without})"
        )

    @property
    def excluded(self) -> tuple[Site, ...]:
        """Sites without a direction: the class means agree there, or the method is of others."""
        return tuple(site for site, ok in zip(self.sites, self.valid, strict=True) if not ok)

    @classmethod
    def from_rows(
        cls,
        rows: Float[Tensor, "site d_model"],
        difference: Float[Tensor, "site d_model"],
        valid: Bool[Tensor, "site"],
        sites: tuple[Site, ...],
        method: object,
    ) -> Candidates:
        """Normalise and orient rows of any length and sign.

        Args:
            rows: what ``method`` found; rows that are not ``valid`` are not read.
            difference: of the class means, from :func:`mean_difference`; it gives the signs.
            valid: which sites have a direction.
            sites: in the order of the rows.
            method: named in the error.

        Raises:
            UserError: a row is perpendicular to the difference of the class means.
        """
        lengths = difference.norm(dim=-1)
        unit = rows / rows.norm(dim=-1, keepdim=True)
        cosines = (unit * difference).sum(dim=-1) / lengths
        for i in valid.nonzero().flatten().tolist():
            if not cosines[i].abs() > PERPENDICULAR_TOLERANCE:
                raise NotApplicable(
                    f"the direction of {method} at {sites[i]} is perpendicular to the difference "
                    "of the class means, so it has no positive side; use DifferenceOfMeans()."
                )
        oriented = torch.where(valid.unsqueeze(-1), unit * cosines.sign().unsqueeze(-1), 0.0)
        return cls(oriented.float(), valid, sites, torch.where(valid, lengths, 0.0).float())


def mean_difference(
    acts: Activations,
) -> tuple[Float[Tensor, "site d_model"], Bool[Tensor, "site"]]:
    """Positive minus negative class mean in float64, and where that is more than rounding.

    Raises:
        UserError: it is no more than rounding at every site.
    """
    means = [h.mean(dim=0, dtype=torch.float64) for h in (acts.positive, acts.negative)]
    difference = means[0] - means[1]
    scale = torch.stack([mean.norm(dim=-1) for mean in means]).amax(dim=0)
    valid = difference.norm(dim=-1) > AGREEMENT_TOLERANCE * scale
    if not valid.any():
        raise NotApplicable(
            f"the two classes of {acts.spec.dataset_name!r} have the same mean activation at every "
            "site, so there is no direction anywhere; the classes must differ where they are read "
            f"(position {acts.spec.position})."
        )
    return difference, valid


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
    """First principal component of the candidates; see :func:`signed_component`.

    Raises:
        UserError: fewer than three candidates, whose differences span no plane with the direction,
            or candidates that differ by no more than rounding.
    """
    directions = candidates.directions[candidates.valid].double()
    if len(directions) < 3:
        raise NotApplicable(
            f"a principal component needs at least 3 sites with a direction, got "
            f"{len(directions)}. Capture more layers or streams."
        )
    spread = (directions - directions.mean(dim=0)).norm(dim=-1).max()
    if spread <= AGREEMENT_TOLERANCE:
        raise NotApplicable(
            f"the {len(directions)} candidates are identical (within {spread:.1e} of their mean), "
            "so their principal component is rounding; expected candidates that differ between "
            "sites. Use plane=RandomSecond(seed=0) or ClassMeans(), or capture other streams."
        )
    return signed_component(directions)


def signed_component(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "d_model"]:
    """First principal component of the rows once centred, its largest entry made positive.

    The sign is a convention that reproduces the published planes; a component has none of its own.
    """
    component = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False).Vh[0]
    return (component * component[component.abs().argmax()].sign()).float()
