"""Planes and sites of calibrations on several sources, compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from transformer_lens.utilities.statistics import derive_generator

from analyses.stability.measures import principal_angles_deg
from ss_lens import Calibration, Plane, UserError

BETWEEN, WITHIN = "between sources", "halves of one source"
N_RANDOM = 200


def compare(
    calibrations: Mapping[str, Calibration],
    halves: Mapping[str, Sequence[Calibration]] | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Principal angles between planes, angle between directions, and overlap of sites.

    Two calibrations on disjoint halves of one source differ by the choice of prompts alone; what
    sources differ by beyond that is drift. (A half has half the prompts, so its angles are a little
    wide of what whole sources would show.)

    Args:
        calibrations: by source, on the same model and streams.
        halves: two calibrations of a source, on disjoint halves of its prompts.
        seed: of the random planes.

    Returns:
        One row per pair: ``kind`` (``between sources`` or ``halves of one source``), ``first``,
        ``second``; the principal angles of the planes in degrees, ``angle_1_deg``, the smaller, and
        ``angle_2_deg``; ``b1_angle_deg`` between the directions, 0 to 180; ``random_1_deg``, the
        5th percentile of the smaller angle between two random planes of that width; ``n_first``,
        ``n_second`` and ``n_both`` steered sites, and ``jaccard``, both over either.

    Raises:
        UserError: fewer than two sources, halves that are not two, or calibrations of different
            models or sites.
    """
    if len(calibrations) < 2:
        raise UserError(
            f"drift is between two sources or more; got {len(calibrations)}. Calibrate on another."
        )
    pairs = [
        (BETWEEN, one, other, calibrations[one], calibrations[other])
        for one, other in combinations(calibrations, 2)
    ]
    for name, parts in (halves or {}).items():
        if len(parts) != 2:
            raise UserError(
                f"the halves of a source are two calibrations; got {len(parts)} of {name!r}. Give "
                "one per half of its prompts."
            )
        pairs.append((WITHIN, name, name, parts[0], parts[1]))
    width = next(iter(calibrations.values())).plane.b1.numel()
    chance = _random_angle_deg(width, seed)
    rows = []
    for kind, one, other, first, second in pairs:
        if first.sites != second.sites or first.spec.model != second.spec.model:
            raise UserError(
                f"the calibrations on {one!r} and {other!r} are of different models or sites, and "
                "their planes cannot be compared; calibrate both alike."
            )
        small, large = principal_angles_deg(first.plane, second.plane)
        cosine = float(first.plane.b1.double() @ second.plane.b1.double())
        both = set(first.selected_sites) & set(second.selected_sites)
        either = set(first.selected_sites) | set(second.selected_sites)
        rows.append(
            {
                **{"kind": kind, "first": one, "second": other},
                **{"angle_1_deg": small, "angle_2_deg": large},
                "b1_angle_deg": float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
                "random_1_deg": chance,
                "n_first": len(first.selected_sites),
                "n_second": len(second.selected_sites),
                **{"n_both": len(both), "jaccard": len(both) / len(either)},
            }
        )
    return pd.DataFrame(rows)


def _random_angle_deg(width: int, seed: int) -> float:
    """The 5th percentile of the smaller principal angle between uniformly random planes."""
    generator = derive_generator(seed, "drift", width)
    angles = []
    for _ in range(N_RANDOM):
        first, second = (Plane.from_span(*torch.randn(2, width, generator=generator)) for _ in "ab")
        angles.append(principal_angles_deg(first, second)[0])
    return float(np.quantile(angles, 0.05))
