"""Where the two classes lie at each site, and how much of an activation the plane holds there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.candidates import cosine_matrix
from ss_lens.calibration.separation import projections
from ss_lens.geometry.plane import Plane
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng


def measure(
    acts: Activations, calibration: Calibration, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row per calibrated site, for prompts that the calibration may not have seen.

    Returns:
        The columns of :func:`of_calibration`, and per class: ``_mean`` and ``_sd`` of the
        projection of the unit-normalised activation onto ``b1`` (a cosine), ``_settled``, whether
        the 95 % BCa interval of that mean is on one side of zero, and ``in_plane_``, the mean share
        of the activation's length that lies in the plane. A rotation by θ moves an activation by
        2 sin(θ/2) times that share of its length.

    Raises:
        UserError: a site of the calibration was not captured.
    """
    at_sites = [acts.at(site) for site in calibration.sites]
    columns: dict[str, np.ndarray] = {}
    for label, side in zip(("positive", "negative"), zip(*at_sites, strict=True), strict=True):
        h = torch.stack(side, dim=1)
        along = projections(h, calibration.plane.b1)
        rng = derive_rng(seed, "site_map", label)
        low, high = bca_mean_interval(along.double().numpy(), rng, n_resamples)
        columns[f"{label}_mean"] = along.mean(dim=0).numpy()
        columns[f"{label}_sd"] = along.std(dim=0).numpy() if len(along) > 1 else 0 * low
        columns[f"{label}_settled"] = (low > 0) | (high < 0)
        columns[f"in_plane_{label}"] = in_plane_share(h, calibration.plane).mean(dim=0).numpy()
    return of_calibration(calibration).assign(**columns)


def in_plane_share(
    h: Float[Tensor, "prompt site d_model"], plane: Plane
) -> Float[Tensor, "prompt site"]:
    """Length of the part of each activation in the plane, over the activation's own length.

    A rotation by θ moves the activation by 2 sin(θ/2) times that share.
    """
    return (h @ plane.basis.T).norm(dim=-1) / h.norm(dim=-1)


def of_calibration(calibration: Calibration) -> pd.DataFrame:
    """What the calibration alone says of its sites, in their order.

    Returns:
        ``site``, ``layer``, ``stream``; ``selected``, whether it is steered; ``is_direction_site``;
        ``direction_cosine``, between its candidate direction and the global one (NaN without one).
    """
    candidates, sites = calibration.candidates, calibration.sites
    cosines = candidates.directions @ calibration.direction.vector
    cosines[~candidates.valid] = torch.nan
    return pd.DataFrame(
        {
            "site": [str(site) for site in sites],
            "layer": [site.layer for site in sites],
            "stream": [site.stream for site in sites],
            "selected": calibration.selected.numpy(),
            "is_direction_site": [site == calibration.direction_site for site in sites],
            "direction_cosine": cosines.numpy(),
        }
    )


def pairs(calibration: Calibration) -> pd.DataFrame:
    """Cosine similarity of every ordered pair of candidate directions, in the sites' order."""
    names = [str(site) for site in calibration.sites]
    square = cosine_matrix(calibration.candidates).numpy()
    return pd.DataFrame(
        {
            "site": np.repeat(names, len(names)),
            "other_site": np.tile(names, len(names)),
            "cosine": square.ravel(),
        }
    )
