"""Which sites to steer: all rules, each a class that says of itself what others need to know.

The first read the activations, the others only where a site is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ss_lens.activations.activations import Evidence
from ss_lens.calibration.selection import RULES, Selection, SelectionRule, registered, tabulated
from ss_lens.calibration.separation import (
    ClassProjections,
    auroc,
    class_projections,
    cohens_d,
    projections,
)
from ss_lens.core.checks import check_is, check_one_of, check_seed, check_whole, described
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.core.values import read_value
from ss_lens.geometry.plane import Plane
from ss_lens.models.sites import Site


@registered
@dataclass(frozen=True)
class Discriminative(SelectionRule):
    """Sites whose class means of the unit-normalised activations lie on opposite sides of zero.

    A mean of exactly zero is on neither side. The table's ``margin`` is the smaller distance of the
    two means from zero where their signs differ, and not positive where they agree; a site
    qualifies where it exceeds ``margin``. Source: arXiv 2601.19375, equation 9 (``site``) and the
    code published with it (``block``).

    Attributes:
        rule: ``site`` takes each site that qualifies, ``block`` the blocks all of whose calibrated
            sites do (the table's ``block_margin`` is the block's smallest).
        margin: how far from zero each mean must be (a cosine, 0 to 1).
        centred: measure both means from the mean projection of the neutral activations.

    Raises:
        UserError: nothing qualifies (the nearest sites are listed), or ``centred`` without neutral
            activations.
    """

    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {"site": {}, "block": {"rule": "block"}}

    rule: Literal["site", "block"] = "site"
    margin: float | int = 0.0
    centred: bool = False

    def __post_init__(self) -> None:
        check_one_of("rule", self.rule, ("site", "block"))
        number = isinstance(self.margin, int | float) and not isinstance(self.margin, bool)
        if not (number and 0 <= self.margin < 1):
            raise UserError(f"margin is a cosine from 0 to below 1; got {described(self.margin)}.")
        object.__setattr__(self, "margin", float(self.margin))
        if not isinstance(self.centred, bool):
            raise UserError(f"centred is True or False; got {described(self.centred)}.")

    @property
    def needs(self) -> Literal["neutral"] | None:
        return "neutral" if self.centred else None

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        means = class_projections(evidence.train, plane.b1)
        columns: dict[str, Tensor] = {"positive": means.positive, "negative": means.negative}
        if self.centred:
            neutral = evidence.needed("neutral", by=self)
            rows = torch.cat((neutral.positive, neutral.negative))
            columns["neutral"] = origin = projections(rows, plane.b1).mean(dim=0)
            means = ClassProjections(means.positive - origin, means.negative - origin)
        columns["margin"] = decisive = means.margin
        if self.rule == "block":
            layers = torch.tensor([site.layer for site in sites])
            decisive = torch.stack([means.margin[layers == layer].amin() for layer in layers])
            columns["block_margin"] = decisive
        mask = decisive.double() > self.margin
        if not mask.any():
            raise NotApplicable(self._nothing_selected(means, sites))
        return tabulated(mask, sites, columns)

    def _nothing_selected(self, means: ClassProjections, sites: tuple[Site, ...]) -> str:
        nearest = (-means.margin).argsort()[:3].tolist()
        listed = "; ".join(
            f"{sites[i]} ({means.positive[i]:+.3f}, {means.negative[i]:+.3f})" for i in nearest
        )
        centred = " from the neutral mean" if self.centred else ""
        beyond, lower = "", ""
        if self.margin:
            beyond, lower = f" and by more than margin={self.margin} each", "a smaller margin, "
        return (
            f"no discriminative {self.rule}: nowhere do the two class means project onto the "
            f"direction with opposite signs{centred}{beyond}. Nearest (positive, negative): "
            f"{listed}. Use {lower}rule='uniform' to steer every site, or calibrate on other "
            "streams or another position."
        )


@registered
@dataclass(frozen=True)
class Uniform(SelectionRule):
    """Every site."""

    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {"uniform": {}}

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        return tabulated(torch.ones(len(sites), dtype=torch.bool), sites, {})


@registered
@dataclass(frozen=True)
class RandomSites(SelectionRule):
    """Sites drawn uniformly without replacement: the control of how many against which.

    The table's ``order`` is the place of each site in the draw, from 0; the first ``count`` are
    selected. The same seed gives the same sites on every platform (NumPy's PCG64).

    Attributes:
        seed: of the draw; there is no default, so that a draw can always be repeated.
        count: how many; ``None`` is as many as ``Discriminative()`` selects on the same evidence.

    Raises:
        UserError: no seed, or a count beyond the number of sites.
    """

    seed: int | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        check_seed("random selection", self.seed)
        if self.count is not None:
            check_whole("count", self.count, at_least=1)

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        count = self.count
        if count is None:
            count = int(Discriminative().select(evidence, plane).mask.sum())
        _at_most_all("count", count, sites)
        order = torch.empty(len(sites), dtype=torch.long)
        drawn = np.random.default_rng(self.seed).permutation(len(sites))
        order[torch.from_numpy(drawn)] = torch.arange(len(sites))
        return tabulated(order < count, sites, {"order": order})

    def draws(self, n: int) -> tuple[RandomSites, ...]:
        """``n`` draws of the same size, with this seed and the ``n − 1`` after it."""
        assert self.seed is not None
        check_whole("n", n, at_least=1)
        return tuple(RandomSites(self.seed + i, self.count) for i in range(n))


@registered
@dataclass(frozen=True)
class Half(SelectionRule):
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


@registered
@dataclass(frozen=True)
class TopK(SelectionRule):
    """The ``k`` sites that separate the classes best along ``b1`` on held-out prompts.

    The score is the area under the ROC curve of the projections of the unit-normalised activations:
    the chance that a positive prompt lies further along ``b1`` than a negative one, 0.5 where the
    classes cannot be told apart and below it where they lie the wrong way round. Ties (many sites
    reach 1) go to the larger Cohen's d, then to the first site.

    Raises:
        UserError: ``k`` beyond the number of sites, or no held-out activations.
    """

    k: int

    def __post_init__(self) -> None:
        check_whole("k", self.k, at_least=1)

    @property
    def needs(self) -> Literal["held_out"]:
        return "held_out"

    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        sites = evidence.train.sites
        _at_most_all("k", self.k, sites)
        held_out = evidence.needed("held_out", by=self)
        positive, negative = (
            projections(h.double(), plane.b1.double())
            for h in (held_out.positive, held_out.negative)
        )
        area, gap = auroc(positive, negative), cohens_d(positive, negative)
        ranked = sorted(range(len(sites)), key=lambda i: (-float(area[i]), -float(gap[i]), i))
        mask = torch.zeros(len(sites), dtype=torch.bool)
        mask[ranked[: self.k]] = True
        means = {"positive": positive.mean(dim=0), "negative": negative.mean(dim=0)}
        return tabulated(mask, sites, {**means, "auroc": area, "cohens_d": gap})


@registered
@dataclass(frozen=True)
class EveryKth(SelectionRule):
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


@registered
@dataclass(frozen=True)
class Explicit(SelectionRule):
    """The sites that are named, like ``Explicit(sites="L3.ln1_out,L5.ln2_out")``.

    They are kept in order of depth and once each, so that equal sets are equal values.

    Raises:
        UserError: no site, or one that cannot be read or was not calibrated.
    """

    sites: str

    def __post_init__(self) -> None:
        if not isinstance(self.sites, str) or not self.sites.strip():
            raise UserError(
                f"sites must be text like 'L3.ln1_out,L5.ln2_out'; got {described(self.sites)}."
            )
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


RULE_SHORTHANDS: dict[str, SelectionRule] = {
    name: kind(**arguments) for kind in RULES for name, arguments in kind.shorthands.items()
}


def as_rule(rule: str | SelectionRule) -> SelectionRule:
    """A rule from its shorthand or from the text that it prints as.

    >>> as_rule("block")
    Discriminative(rule='block', margin=0.0, centred=False)
    >>> as_rule("TopK(k=8)")
    TopK(k=8)

    Raises:
        UserError: no rule, an unknown one, or arguments that do not fit it.
    """
    if not isinstance(rule, str):
        check_is(
            "rule", rule, (SelectionRule,), "'site', 'block', 'uniform' or one such as TopK(k=8)"
        )
        return rule
    if rule in RULE_SHORTHANDS:
        return RULE_SHORTHANDS[rule]
    names = [kind.__name__ for kind in RULES]
    if rule.partition("(")[0].strip() not in names:
        raise UserError(
            f"unknown rule {rule!r}; use one of {', '.join(RULE_SHORTHANDS)}, or a value of "
            f"{', '.join(names)} like TopK(k=8)."
        )
    return read_value(rule, RULES, "rule")


def rule_name(rule: SelectionRule) -> str:
    """The shorthand where there is one, else the text that :func:`as_rule` reads back.

    >>> rule_name(Uniform())
    'uniform'
    >>> rule_name(TopK(k=8))
    'TopK(k=8)'
    """
    for name, value in RULE_SHORTHANDS.items():
        if value == rule:
            return name
    return repr(rule)


def _layer_ranks(sites: tuple[Site, ...]) -> Int[Tensor, "site"]:
    """Place of each site's layer among the layers that occur, from 0."""
    layers = torch.tensor([site.layer for site in sites])
    return torch.unique(layers, return_inverse=True)[1]


def _at_most_all(name: str, value: int, sites: tuple[Site, ...]) -> None:
    if value > len(sites):
        raise NotApplicable(
            f"{name}={value} is more than the {len(sites)} calibrated sites; use 1–{len(sites)}."
        )
