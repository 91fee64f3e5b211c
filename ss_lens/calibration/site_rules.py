"""Sites chosen by where they are, whatever the activations say: all, a half, every k-th, named."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ss_lens.activations.activations import Evidence
from ss_lens.core.checks import check_one_of, check_whole
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.geometry.plane import Plane
from ss_lens.models.sites import Site


@dataclass(frozen=True, eq=False)
class Selection:
    """The sites to steer and why.

    Attributes:
        mask: on at the sites to steer.
        table: one row per site: ``site``, the numbers that the rule decided by, ``selected``.

    Raises:
        UserError: no site is selected, or the table's ``selected`` says something else.
    """

    mask: Bool[Tensor, "site"]
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if not self.mask.any():
            raise UserError("no site is selected; a calibration needs at least one to steer.")
        if self.table["selected"].tolist() != self.mask.tolist():
            raise UserError("the selection's table differs from its mask; calibrate again.")


def tabulated(
    mask: Bool[Tensor, "site"], sites: tuple[Site, ...], columns: dict[str, Tensor]
) -> Selection:
    """The selection ``mask`` with its table: site, the numbers in ``columns``, selected."""
    numbers = {
        name: values.double().numpy() if values.is_floating_point() else values.numpy()
        for name, values in columns.items()
    }
    names = [str(site) for site in sites]
    return Selection(mask, pd.DataFrame({"site": names, **numbers, "selected": mask.numpy()}))


@dataclass(frozen=True)
class Uniform:
    """Every site."""

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        return tabulated(torch.ones(len(sites), dtype=torch.bool), sites, {})


@dataclass(frozen=True)
class Half:
    """All sites of the first or second half of the calibrated layers, in order of depth.

    With an odd number of layers the middle one belongs to the first half. The table's
    ``layer_rank`` counts the calibrated layers from 0.

    Raises:
        UserError: the second half of a single layer.
    """

    which: Literal["first", "second"]

    def __post_init__(self) -> None:
        check_one_of("which", self.which, ("first", "second"))

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        ranks = _layer_ranks(sites)
        n_layers = int(ranks.max()) + 1
        if n_layers == 1 and self.which == "second":
            raise NotApplicable(
                f"only layer {sites[0].layer} is calibrated, so there is no second half; capture "
                "more layers."
            )
        first = ranks < math.ceil(n_layers / 2)
        return tabulated(first if self.which == "first" else ~first, sites, {"layer_rank": ranks})


@dataclass(frozen=True)
class EveryKth:
    """All sites of every ``k``-th calibrated layer, in order of depth, from ``offset`` on.

    Layers are counted and not sites: every second site would be one stream of every layer. The
    table's ``layer_rank`` counts the calibrated layers from 0.

    Raises:
        UserError: ``offset`` is not below ``k``, or beyond the last layer.
    """

    k: int
    offset: int = 0

    def __post_init__(self) -> None:
        check_whole("k", self.k, at_least=1)
        check_whole("offset", self.offset, at_least=0)
        if self.offset >= self.k:
            raise UserError(f"offset must be below k={self.k}; got {self.offset}.")

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        ranks = _layer_ranks(sites)
        n_layers = int(ranks.max()) + 1
        if self.offset >= n_layers:
            raise NotApplicable(
                f"offset {self.offset} is beyond the {n_layers} calibrated layers; "
                f"use 0–{n_layers - 1}."
            )
        return tabulated(ranks % self.k == self.offset, sites, {"layer_rank": ranks})


@dataclass(frozen=True)
class Explicit:
    """The sites that are named, like ``Explicit(sites="L3.ln1_out,L5.ln2_out")``.

    They are kept in order of depth and once each, so that equal sets are equal values.

    Raises:
        UserError: no site, or one that cannot be read or was not calibrated.
    """

    sites: str

    def __post_init__(self) -> None:
        if not isinstance(self.sites, str) or not self.sites.strip():
            raise UserError(f"sites must be text like 'L3.ln1_out,L5.ln2_out'; got {self.sites!r}.")
        named = {Site.parse(part.strip()) for part in self.sites.split(",")}
        object.__setattr__(self, "sites", ",".join(str(site) for site in sorted(named)))

    @classmethod
    def of(cls, *sites: Site) -> Explicit:
        return cls(",".join(str(site) for site in sites))

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        named = {Site.parse(text) for text in self.sites.split(",")}
        if unknown := sorted(named - set(sites)):
            streams = ", ".join(dict.fromkeys(site.stream for site in sites))
            raise NotApplicable(
                f"{unknown[0]} is not a calibrated site; those are {sites[0]} … {sites[-1]} "
                f"(streams {streams})."
            )
        return tabulated(torch.tensor([site in named for site in sites]), sites, {})


def _layer_ranks(sites: tuple[Site, ...]) -> Int[Tensor, "site"]:
    """Place of each site's layer among the layers that occur, from 0."""
    layers = torch.tensor([site.layer for site in sites])
    return torch.unique(layers, return_inverse=True)[1]
