"""How far apart the two classes lie along a direction, per site."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.activations.activations import Activations


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
