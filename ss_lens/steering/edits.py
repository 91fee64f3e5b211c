"""Edits: operators bound to their calibration, and which of them may meet at a site."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.directions import DifferenceOfMeans
from ss_lens.core.errors import UserError
from ss_lens.geometry.operators import Operator
from ss_lens.geometry.plane import Plane
from ss_lens.models.sites import Site

MAX_OVERLAP = 0.1


@dataclass(frozen=True, eq=False)
class Edit:
    """One operator in one plane at its sites; ``place`` counts the edits of a composition."""

    place: int
    operator: Operator
    plane: Plane
    sites: tuple[Site, ...]


def places(calibration: Calibration, operator: Operator) -> tuple[tuple[Site, ...], Operator]:
    """Where ``operator`` acts, and what it is once the calibration is known.

    Raises:
        UserError: an operator that needs the length of a mean difference (``ActAdd``), where the
            calibration's ``b1`` is not the mean difference of a site.
    """
    if not operator.needs_length:
        return calibration.selected_sites, operator
    name = type(operator).__name__
    site = calibration.direction_site
    if site is None:
        raise UserError(
            f"{name} adds the mean difference of one site, and this calibration's direction is a "
            "consensus of all; calibrate with choice=MaxMeanCosine() or AtSite(site=...)."
        )
    place = calibration.sites.index(site)
    cosine = float(calibration.plane.b1.double() @ calibration.directions[place].double())
    if not isinstance(calibration.recipe.direction, DifferenceOfMeans) or cosine < 1 - 1e-5:
        raise UserError(
            f"{name} adds the mean difference of {site}, and this calibration's b1 is another "
            "direction; calibrate with direction=DifferenceOfMeans() and plane=PC1(), or use Add."
        )
    return (site,), operator.bound(float(calibration.candidates.lengths[place]))


def overlap(first: Plane, second: Plane) -> float:
    """The cosine of the smallest principal angle between two planes."""
    between = first.basis.double().cpu() @ second.basis.double().cpu().T
    return min(float(torch.linalg.matrix_norm(between, ord=2)), 1.0)


def check_overlaps(edits: Sequence[Edit], allowed: float) -> None:
    """Raise a :class:`UserError` where the order of two edits would decide the result.

    The rule is that of :func:`ss_lens.steer_all`.
    """
    acting = [edit for edit in edits if not edit.operator.is_identity]
    for first, second in itertools.combinations(acting, 2):
        shared = sorted(set(first.sites) & set(second.sites))
        if not shared:
            continue
        where = f"{shared[0]}{f' and {len(shared) - 1} more' if len(shared) > 1 else ''}"
        remedy = "Steer them at different sites, or accept the order given with max_overlap="
        measured = overlap(first.plane, second.plane)
        if measured > allowed:
            raise UserError(
                f"the planes of calibrations {first.place} and {second.place} overlap by "
                f"{measured:.3f} (cosine of their smallest principal angle) at {where}; at most "
                f"{allowed:g} is allowed, or the order of the edits would decide the result. "
                f"{remedy}{math.ceil(measured * 1000) / 1000:g}."
            )
        outside = [e.operator for e in (first, second) if not e.operator.stays_in_plane]
        if allowed < 1 and outside:
            raise UserError(
                f"calibrations {first.place} and {second.place} meet at {where}, and "
                f"{type(outside[0]).__name__} turns the whole activation, not only its part in one "
                f"plane, so the order of the edits decides the result. {remedy}1."
            )
