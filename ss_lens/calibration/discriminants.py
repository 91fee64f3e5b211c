"""Directions fitted to the activations of one site: pure functions of float64 tensors."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.core.errors import NotApplicable
from ss_lens.models.sites import Site

SHRINKAGES = ("ledoit_wolf", "oas")

TIE_TOLERANCE = 1e-6
"""Singular values closer than this share of the larger do not say which comes first."""
MAX_ITERATIONS = 10_000
GRADIENT_TOLERANCE = 1e-7


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
