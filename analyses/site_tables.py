"""The typed tables that figures draw: a value per site, and a value per pair of sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from ss_lens.core.errors import UserError
from ss_lens.models.sites import Site


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """One value per site, with its name and unit."""

    values: Float[np.ndarray, "site"]
    sites: tuple[Site, ...]
    name: str
    unit: str

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, column: str, unit: str) -> LayerProfile:
        """The profile in ``column`` of a table with one row per ``site``."""
        sites = tuple(Site.parse(text) for text in frame["site"])
        if len(set(sites)) < len(sites):
            raise UserError(f"a profile of {column!r} needs one row per site; some sites repeat.")
        return cls(frame[column].to_numpy(float), sites, column, unit)

    def of_stream(self, stream: str) -> LayerProfile:
        keep = [i for i, site in enumerate(self.sites) if site.stream == stream]
        return LayerProfile(
            self.values[keep], tuple(self.sites[i] for i in keep), self.name, self.unit
        )


@dataclass(frozen=True, eq=False)
class SiteMatrix:
    """One value per pair of sites, with its name and unit."""

    values: Float[np.ndarray, "site site"]
    sites: tuple[Site, ...]
    name: str
    unit: str

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, column: str, unit: str) -> SiteMatrix:
        """The matrix in ``column`` of a table with one row per ``site`` and ``other_site``."""
        sites = tuple(sorted({Site.parse(text) for text in frame["site"]}))
        names = [str(site) for site in sites]
        square = frame.pivot(index="site", columns="other_site", values=column)
        return cls(square.loc[names, names].to_numpy(float), sites, column, unit)


def unsettled(table: pd.DataFrame, label: str) -> np.ndarray:
    """Where a class's mean is not known to lie on one side of zero, by its own interval.

    An interval that cannot be known, of a single prompt, settles nothing.
    """
    beyond = (table[f"{label}_low"] > 0) | (table[f"{label}_high"] < 0)
    return ~beyond.to_numpy(dtype=bool)
