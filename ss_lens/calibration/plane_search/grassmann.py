r"""The plane that separates the classes best: ascent of a criterion over the Grassmannian.

The criterion is a Fisher ratio of planes, the mean over sites of

.. math::

    J_k(Q) = \frac{\|Q^\top (m_k^P - m_k^N)\|^2}{\operatorname{tr}(Q^\top S_k Q)}

with the class means :math:`m_k` and the pooled within-class covariance :math:`S_k` of the
unit-normalised activations at site :math:`k`. It is the same for every orthonormal basis
:math:`Q` of a plane, so it is a function on the Grassmannian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.core.progress import progress_bar

NO_SPREAD = 1e-12
"""A variance of unit vectors below this is float32 rounding."""
MOMENTUM_DECAYS = (0.9, 0.9)
"""Of Adam's two moments; the second forgets fast, as the gradient falls by orders of magnitude."""


@dataclass(frozen=True, eq=False)
class Separation:
    r"""The criterion on one set of activations, as what it needs of them.

    No ``d × d`` covariance is built: :math:`\operatorname{tr}(Q^\top S Q)` is the mean square of
    the projected deviations, which are held in float64 (8 bytes per entry of the activations).

    Attributes:
        gap: positive minus negative class mean.
        deviations: of each prompt from its class mean, over the root of the degrees of freedom.
        shrinkage: share of each covariance that is replaced by a multiple of the identity of the
            same trace; 0 leaves it as it is.
    """

    gap: Float[Tensor, "site d_model"]
    deviations: Float[Tensor, "site prompt d_model"]
    shrinkage: Float[Tensor, "site"]

    @classmethod
    def of(
        cls,
        acts: Activations,
        sites: Bool[Tensor, "site"],
        shrinkage: Float[Tensor, "kept_site"] | None = None,
    ) -> Separation:
        """The criterion over the given sites of ``acts``; shrinkage by Ledoit–Wolf unless given.

        Raises:
            UserError: the activations of each class do not vary at a site.
        """
        units = [_units(h[:, sites]) for h in (acts.positive, acts.negative)]
        means = [unit.mean(dim=1, keepdim=True) for unit in units]
        freedom = max(len(acts.positive) + len(acts.negative) - 2, 1)  # 1 + 1 prompts fail below
        deviations = torch.cat([u - m for u, m in zip(units, means, strict=True)], dim=1)
        deviations /= math.sqrt(freedom)
        varies = (deviations**2).sum(dim=(1, 2)) > NO_SPREAD
        if not varies.all():
            kept = [site for site, on in zip(acts.sites, sites.tolist(), strict=True) if on]
            raise NotApplicable(
                f"the activations of each class do not vary at {kept[int(varies.int().argmin())]}, "
                "so there is no spread to compare the gap between the classes with; capture more "
                "prompts, or use another plane."
            )
        if shrinkage is None:
            shrinkage = torch.stack([ledoit_wolf(rows) for rows in deviations])
        return cls((means[0] - means[1]).squeeze(1), deviations, shrinkage)

    @cached_property
    def spread(self) -> Float[Tensor, "site"]:
        """What the shrinkage adds to the denominator."""
        mean_variance = (self.deviations**2).sum(dim=(1, 2)) / self.gap.shape[-1]
        return 2 * self.shrinkage * mean_variance

    def __call__(self, basis: Float[Tensor, "d_model 2"]) -> float:
        """The criterion of the plane with this orthonormal basis."""
        return float(self.value_and_gradient(basis)[0])

    def value_and_gradient(
        self, basis: Float[Tensor, "d_model 2"]
    ) -> tuple[float, Float[Tensor, "d_model 2"]]:
        """The criterion, and its gradient along the Grassmannian.

        Written out because automatic differentiation multiplies by the transposed activations,
        which takes seven times as long.
        """
        kept = 1 - self.shrinkage
        projected_gap, projected = self.gap @ basis, self.deviations @ basis
        within = kept * (projected**2).sum(dim=(1, 2)) + self.spread
        ratio = (projected_gap**2).sum(dim=-1) / within
        pull = (projected_gap / within.unsqueeze(-1)).T @ self.gap
        weights = (ratio * kept / within).reshape(-1, 1, 1)
        push = ((weights * projected).mT @ self.deviations).sum(dim=0)
        gradient = 2 / len(within) * (pull - push).T
        return float(ratio.mean()), gradient - basis @ (basis.T @ gradient)


def ledoit_wolf(rows: Float[Tensor, "prompt d_model"]) -> Float[Tensor, ""]:
    """Optimal shrinkage of the covariance of centred rows towards a multiple of the identity.

    Computed from the rows' inner products, so that no covariance is built. It does not depend on
    the scale of the rows. Source: Ledoit and Wolf 2004, "A well-conditioned estimator for
    large-dimensional covariance matrices".
    """
    n, d = rows.shape
    products = rows @ rows.T
    square = (products**2).sum()
    distance = square - products.trace() ** 2 / d
    noise = (products.diagonal() ** 2).sum() - square / n
    return (noise / distance).clamp(max=1) if distance > 0 else torch.ones_like(distance)


def ascend(
    separation: Separation,
    start: Float[Tensor, "d_model 2"],
    steps: int,
    learning_rate: float | int,
) -> tuple[Float[Tensor, "d_model 2"], int]:
    """The best plane on a path of ``steps`` steps uphill from ``start``, and its place on the path.

    Riemannian Adam with exact geodesics, so that the path depends on the plane and not on the
    basis it starts from. The criterion has many local maxima; this finds one near ``start``.

    Args:
        separation: what is maximised.
        start: an orthonormal basis.
        steps: how many.
        learning_rate: length of the first steps in radians; it falls to zero along a cosine.

    Raises:
        UserError: geoopt is not installed.
    """
    geoopt = _geoopt()
    manifold = geoopt.EuclideanStiefelExact()
    point = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    optimiser = geoopt.optim.RiemannianAdam(
        [point], lr=learning_rate, betas=MOMENTUM_DECAYS, stabilize=10
    )
    best, best_value, best_step = start, -math.inf, 0
    with progress_bar(steps + 1, "plane", "step") as bar:
        for step in range(steps + 1):
            here = point.detach().clone()
            value, gradient = separation.value_and_gradient(here)
            if value > best_value:
                best, best_value, best_step = here, value, step
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            point.grad = -gradient / value  # of the logarithm, which has no scale
            optimiser.step()
            bar.update()
    return best, best_step


def _units(h: Float[Tensor, "prompt site d_model"]) -> Float[Tensor, "site prompt d_model"]:
    wide = h.transpose(0, 1).double()
    return wide / wide.norm(dim=-1, keepdim=True)


def _geoopt() -> Any:
    try:
        import geoopt
    except ImportError as error:
        raise UserError(
            "optimising a plane needs geoopt, which is not installed; "
            'pip install "ss_lens[grassmann]".'
        ) from error
    return geoopt
