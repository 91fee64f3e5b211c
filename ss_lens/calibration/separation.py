"""How the two classes are told apart: along a direction, and by the direction fitted to a site."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.core.errors import NotApplicable
from ss_lens.models.sites import Site

SHRINKAGES = ("ledoit_wolf", "oas")

TIE_TOLERANCE = 1e-6
"""Singular values closer than this share of the larger do not say which comes first."""
MAX_ITERATIONS = 10_000
GRADIENT_TOLERANCE = 1e-7


@dataclass(frozen=True, eq=False)
class ClassProjections:
    """Mean projections of the unit-normalised activations of each class onto ``b1``, per site."""

    positive: Float[Tensor, "site"]
    negative: Float[Tensor, "site"]

    @property
    def product(self) -> Float[Tensor, "site"]:
        """Negative exactly where the two classes lie on opposite sides."""
        return self.positive * self.negative

    @property
    def margin(self) -> Float[Tensor, "site"]:
        """The smaller distance from zero where the two lie on opposite sides, else not positive."""
        p, n = self.positive, self.negative
        return torch.maximum(torch.minimum(p, -n), torch.minimum(-p, n))


def projections(
    h: Float[Tensor, "prompt site d_model"], b1: Float[Tensor, "d_model"]
) -> Float[Tensor, "prompt site"]:
    """Projection of each unit-normalised activation onto ``b1`` (a cosine, −1 to 1)."""
    return (h @ b1) / h.norm(dim=-1)


def class_projections(acts: Activations, b1: Float[Tensor, "d_model"]) -> ClassProjections:
    """Class means of :func:`projections`. Source: arXiv 2601.19375, equation 9."""
    return ClassProjections(
        projections(acts.positive, b1).mean(dim=0), projections(acts.negative, b1).mean(dim=0)
    )


def auroc(
    positive: Float[Tensor, "positive_prompt site"], negative: Float[Tensor, "negative_prompt site"]
) -> Float[Tensor, "site"]:
    """The chance that a positive value exceeds a negative one, ties counting half, per site.

    This is the area under the ROC curve: 1 where the classes are apart, 0.5 where they cannot be
    told apart, 0 where they are apart the wrong way round.
    """
    below = negative.T.contiguous().sort(dim=-1).values
    wanted = positive.T.contiguous()
    wins = torch.searchsorted(below, wanted) + torch.searchsorted(below, wanted, right=True)
    return wins.double().mean(dim=-1) / (2 * len(negative))


def cohens_d(
    positive: Float[Tensor, "positive_prompt site"], negative: Float[Tensor, "negative_prompt site"]
) -> Float[Tensor, "site"]:
    """Difference of the class means in units of the pooled standard deviation, per site.

    Infinite where neither class varies but the means differ, and zero where they agree as well.
    """
    gap = positive.mean(dim=0) - negative.mean(dim=0)
    within = torch.cat((positive - positive.mean(dim=0), negative - negative.mean(dim=0)))
    freedom = max(len(positive) + len(negative) - 2, 1)  # one prompt per class has no spread
    return torch.where(gap == 0, 0.0, gap / ((within**2).sum(dim=0) / freedom).sqrt())


def first_singular_direction(
    rows: Float[Tensor, "row d_model"], what: str
) -> Float[Tensor, "d_model"]:
    """First right-singular vector of ``rows``, of arbitrary sign; ``what`` names it in the error.

    It is the unit vector with the largest sum of squared projections of the rows: their first
    principal component about the origin, since the rows are not centred here.

    Raises:
        UserError: the two largest singular values are equal, so that any vector between their two
            would do.
    """
    _, strengths, components = torch.linalg.svd(rows, full_matrices=False)
    if len(strengths) > 1 and strengths[0] - strengths[1] <= TIE_TOLERANCE * strengths[0]:
        raise NotApplicable(
            f"{what} is not determined: its two strongest components are equally strong "
            f"({strengths[0]:.4g}). Use more prompts or sites, or another method."
        )
    return components[0]


def fisher_direction(
    positive: Float[Tensor, "positive_prompt d_model"],
    negative: Float[Tensor, "negative_prompt d_model"],
    shrinkage: str,
    site: Site,
) -> Float[Tensor, "d_model"]:
    r""":math:`\Sigma^{-1}(\bar h^P - \bar h^N)`, not normalised.

    :math:`\Sigma` is the within-class covariance, pooled over both classes (each row minus the mean
    of its class) and shrunk towards a multiple of the identity by as much as ``shrinkage``, one of
    :data:`SHRINKAGES`, estimates.

    Raises:
        UserError: :math:`\Sigma` is singular after shrinkage; ``site`` is named.
    """
    from sklearn.covariance import ledoit_wolf, oas

    means = positive.mean(dim=0), negative.mean(dim=0)
    within = torch.cat((positive - means[0], negative - means[1]))
    estimate = {"ledoit_wolf": ledoit_wolf, "oas": oas}[shrinkage]
    covariance = torch.from_numpy(estimate(within.numpy(), assume_centered=True)[0])
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal() ** 2
    rounding = len(pivots) * torch.finfo(pivots.dtype).eps * pivots.max()
    if failed or pivots.min() <= rounding:
        raise NotApplicable(
            f"the within-class covariance at {site} is singular even after {shrinkage} shrinkage "
            f"({len(positive)} + {len(negative)} prompts, width {len(pivots)}): the prompts of a "
            "class hardly differ there. Use more prompts, leave this stream out, or use "
            "DifferenceOfMeans()."
        )
    return torch.cholesky_solve((means[0] - means[1]).unsqueeze(-1), factor).squeeze(-1)


def logistic_direction(
    positive: Float[Tensor, "positive_prompt d_model"],
    negative: Float[Tensor, "negative_prompt d_model"],
    c: float | int,
    site: Site,
) -> Float[Tensor, "d_model"]:
    """Coefficients of an L2-regularised logistic regression with intercept, not normalised.

    All coordinates are divided by one number, the root mean square of the centred activations, so
    that ``c`` means the same at every site and the coefficients are a direction of the activation
    space itself; a scale per coordinate would bend it.

    Raises:
        UserError: the fit does not converge; ``site`` is named.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat((positive, negative))
    rows = rows - rows.mean(dim=0)
    rows = rows / rows.square().mean().sqrt()
    labels = [1] * len(positive) + [0] * len(negative)
    model = LogisticRegression(C=c, solver="lbfgs", tol=GRADIENT_TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(rows.numpy(), labels)
        except ConvergenceWarning as warning:
            raise NotApplicable(
                f"the logistic regression at {site} did not converge in {MAX_ITERATIONS} "
                f"iterations with c={c}; use a smaller c (stronger regularisation)."
            ) from warning
    return torch.from_numpy(model.coef_[0])
