"""A selection of sites, and what every rule that makes one has in common.

The rules themselves are in :mod:`ss_lens.calibration.site_selection`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import pandas as pd
from jaxtyping import Bool
from torch import Tensor

from ss_lens.activations.activations import Evidence
from ss_lens.core.errors import UserError
from ss_lens.core.shown import listed
from ss_lens.geometry.plane import Plane
from ss_lens.models.sites import Site


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        named = listed(self.table.loc[self.table["selected"], "site"].tolist())
        return f"Selection({int(self.mask.sum())} of {len(self.mask)} sites: {named})"


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
class SelectionRule(ABC):
    """A frozen value that says which sites to steer; :func:`registered` makes it known by name.

    Attributes:
        shorthands: names for often used arguments, like ``{"block": {"rule": "block"}}``.
    """

    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @property
    def needs(self) -> Literal["held_out", "neutral"] | None:
        """The activations that the rule decides by beside those that are fitted on."""
        return None

    @abstractmethod
    def select(self, evidence: Evidence, plane: Plane) -> Selection:
        """The sites to steer, with the numbers that decided."""


RULES: list[type[SelectionRule]] = []
"""All rules, in the order in which messages list them."""
_T = TypeVar("_T", bound="type[SelectionRule]")


def registered(kind: _T) -> _T:
    """Make a class one of :data:`RULES`."""
    RULES.append(kind)
    return kind
