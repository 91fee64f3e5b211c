"""Random planes to steer in, beside a calibration's own."""

from __future__ import annotations

import ss_lens
from ss_lens import Activations, Calibration, Explicit, MatchedRandomPlane


def matched_planes(
    train: Activations, own: Calibration, draws: int, seed: int = 0
) -> list[Calibration]:
    """Random planes that hold as much of the activations as ``own``, at the sites that it steers.

    Args:
        train: what ``own`` was fitted on.
        own: whose sites are steered.
        draws: how many planes.
        seed: of the first; each further one has the next.
    """
    sites = ",".join(map(str, own.selected_sites))
    planes = [MatchedRandomPlane(seed=seed + place, sites=sites) for place in range(draws)]
    return [ss_lens.calibrate(train, plane=one, rule=Explicit(sites=sites)) for one in planes]
