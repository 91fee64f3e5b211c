"""Ways to find one candidate direction per site: frozen values that name a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.calibration.candidates import Candidates, mean_difference
from ss_lens.calibration.dictionary import Dictionary
from ss_lens.calibration.separation import (
    SHRINKAGES,
    first_singular_direction,
    fisher_direction,
    logistic_direction,
)
from ss_lens.core.checks import check_one_of, described, is_finite
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.core.progress import progress_bar
from ss_lens.models.sites import Site


@dataclass(frozen=True)
class DifferenceOfMeans:
    r"""Normalised difference of the class means at each site.

    :math:`d_k = \bar h_k^P - \bar h_k^N`, divided by its norm. A site whose means agree (block 0's
    ``ln1_out``, when all prompts end in the same template tokens) has no direction: it is excluded
    and reported. Source: arXiv 2406.11717; arXiv 2601.19375, candidate directions.
    """

    def candidates(self, acts: Activations) -> Candidates:
        """Raises a :class:`UserError`, as every method, when the means agree at every site."""
        difference, valid = mean_difference(acts)
        return Candidates.from_rows(difference, difference, valid, acts.sites, self)


@dataclass(frozen=True)
class PairedPCA:
    r"""First principal component of the differences of partners, :math:`h_i^P - h_i^N`.

    About the origin: centred on their mean, the differences would lose the very direction that
    they share. Source: arXiv 2310.01405 (Linear Artificial Tomography), which takes the two of a
    pair in changing order, so that its differences have a mean near zero to begin with.
    """

    def candidates(self, acts: Activations) -> Candidates:
        """Raises a :class:`UserError` unless the activations are of a paired dataset."""
        if not acts.spec.paired or len(acts.positive) != len(acts.negative):
            raise NotApplicable(
                f"PairedPCA() needs partners; the {len(acts.positive)} positive and "
                f"{len(acts.negative)} negative prompts of {acts.spec.dataset_name!r} are not "
                "marked as paired. Where equal rows are partners, say load_dataset(..., "
                "paired=True) and capture again; else use CentredPCA()."
            )
        return _at_each_site(
            acts, self, lambda p, n, site: first_singular_direction(p - n, f"{self} at {site}")
        )


@dataclass(frozen=True)
class CentredPCA:
    """First principal component of all activations about the midpoint of the two class means.

    The form of :class:`PairedPCA` that needs no pairs. It finds what varies most, whether between
    the classes or within them: see how far it agrees with :class:`DifferenceOfMeans`.
    """

    def candidates(self, acts: Activations) -> Candidates:
        """Raises a :class:`UserError` where two components are equally strong."""

        def fit(positive: Tensor, negative: Tensor, site: Site) -> Tensor:
            midpoint = (positive.mean(dim=0) + negative.mean(dim=0)) / 2
            rows = torch.cat((positive, negative)) - midpoint
            return first_singular_direction(rows, f"{self} at {site}")

        return _at_each_site(acts, self, fit)


@dataclass(frozen=True)
class Fisher:
    r"""Fisher's linear discriminant, :math:`\Sigma^{-1}(\bar h^P - \bar h^N)`.

    :math:`\Sigma` is the pooled within-class covariance with ``shrinkage`` by ``"ledoit_wolf"``
    (doi:10.1016/S0047-259X(03)00096-4) or ``"oas"`` (arXiv 0907.4698), without which it is singular
    wherever there are fewer prompts than dimensions. Source: Fisher 1936,
    doi:10.1111/j.1469-1809.1936.tb02137.x. See :func:`fisher_direction`.
    """

    shrinkage: str = "ledoit_wolf"

    def __post_init__(self) -> None:
        check_one_of("shrinkage", self.shrinkage, SHRINKAGES)

    def candidates(self, acts: Activations) -> Candidates:
        """Raises a :class:`UserError` where the covariance is singular even after shrinkage."""
        return _at_each_site(
            acts, self, lambda p, n, site: fisher_direction(p, n, self.shrinkage, site)
        )


@dataclass(frozen=True)
class Logistic:
    """Normal of the hyperplane that an L2-regularised logistic regression puts between the classes.

    ``c`` is the inverse strength of the regularisation (scikit-learn's ``C``), for activations
    divided by one common scale per site. Source: linear probes, arXiv 1610.01644. See
    :func:`logistic_direction`.
    """

    c: float | int = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.c, float | int) and is_finite(self.c) and self.c > 0):
            raise UserError(f"c must be a positive, finite number; got {described(self.c)}.")

    def candidates(self, acts: Activations) -> Candidates:
        """Raises a :class:`UserError` where the regression does not converge."""
        return _at_each_site(acts, self, lambda p, n, site: logistic_direction(p, n, self.c, site))


DirectionMethod = DifferenceOfMeans | PairedPCA | CentredPCA | Fisher | Logistic | Dictionary


def difference_of_means(acts: Activations) -> Candidates:
    """What :class:`DifferenceOfMeans` finds."""
    return DifferenceOfMeans().candidates(acts)


def _at_each_site(
    acts: Activations, method: DirectionMethod, fit: Callable[[Tensor, Tensor, Site], Tensor]
) -> Candidates:
    """Fit ``(positive, negative, site)`` in float64 wherever the class means differ."""
    difference, valid = mean_difference(acts)
    rows = torch.zeros_like(difference)
    places = valid.nonzero().flatten().tolist()
    with progress_bar(len(places), "directions", "site") as bar:
        for i in places:
            rows[i] = fit(acts.positive[:, i].double(), acts.negative[:, i].double(), acts.sites[i])
            bar.update()
    return Candidates.from_rows(rows, difference, valid, acts.sites, method)
