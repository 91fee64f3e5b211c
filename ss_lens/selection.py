"""Which sites to steer, and the numbers that decide it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ss_lens.activations import Activations
from ss_lens.errors import UserError
from ss_lens.sites import Site

Rule = Literal["site", "block", "uniform"]


@dataclass(frozen=True, eq=False)
class ClassProjections:
    """Mean projections of the unit-normalised activations of each class onto ``b1``, per site."""

    positive: Float[Tensor, "site"]
    negative: Float[Tensor, "site"]

    @property
    def product(self) -> Float[Tensor, "site"]:
        """Negative exactly where the two classes lie on opposite sides."""
        return self.positive * self.negative


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


def select(
    projected: ClassProjections, sites: tuple[Site, ...], rule: Rule = "site"
) -> Bool[Tensor, "site"]:
    """The sites to steer.

    Args:
        projected: what the rule decides by.
        sites: the calibrated sites, in the order of ``projected``.
        rule: ``site`` takes each site whose class means have opposite signs (equation 9 of arXiv
            2601.19375); ``block`` takes the blocks all of whose calibrated sites do (the published
            code); ``uniform`` takes every site.

    Raises:
        UserError: the rule selects nothing; the nearest sites are listed.
    """
    if rule not in get_args(Rule):
        raise UserError(f"unknown rule {rule!r}; use one of {', '.join(get_args(Rule))}.")
    if rule == "uniform":
        return torch.ones(len(sites), dtype=torch.bool)
    mask = projected.product < 0
    if rule == "block":
        failing = {site.layer for site, ok in zip(sites, mask, strict=True) if not ok}
        mask = torch.tensor([site.layer not in failing for site in sites])
    if not mask.any():
        raise UserError(_nothing_selected(projected, sites, rule))
    return mask


def _nothing_selected(projected: ClassProjections, sites: tuple[Site, ...], rule: Rule) -> str:
    nearest = projected.product.argsort()[:3].tolist()
    listed = "; ".join(
        f"{sites[i]} ({projected.positive[i]:+.3f}, {projected.negative[i]:+.3f})" for i in nearest
    )
    what = "site" if rule == "site" else "block"
    return (
        f"no discriminative {what}: nowhere do the two class means project onto the direction with "
        f"opposite signs. Nearest (positive, negative): {listed}. Use rule='uniform' to steer "
        "every site, or calibrate on other streams or another position."
    )
