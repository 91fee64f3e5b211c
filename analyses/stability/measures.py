"""How far can a calibration be trusted? Other prompts, fewer prompts, and shuffled labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from analyses import style
from analyses.stability import resampling
from analyses.stability.recalibration import Recalibrated, means_along, random_planes, recalibrate
from analyses.stability.resampling import Resamples
from ss_lens import Activations, Plane, UserError
from ss_lens.calibration.calibration import CALIBRATION_STREAMS
from ss_lens.core.progress import progress_bar
from ss_lens.models.sites import Stream
from ss_lens.stats.bootstrap import percentile_interval


class Stability(NamedTuple):
    """One row per draw, and one row per site and kind of draw; see :func:`measure`."""

    draws: pd.DataFrame
    sites: pd.DataFrame


def measure(
    acts: Activations,
    *,
    n_resamples: int = 400,
    sizes: Sequence[int] | None = None,
    streams: Sequence[Stream] = CALIBRATION_STREAMS,
    seed: int = 0,
) -> Stability:
    """The default calibration repeated on resampled prompts, beside that on all of them.

    The kinds of draw: ``full``, all prompts, once; ``bootstrap``, each class resampled with
    replacement; ``subsample``, fewer prompts per class without replacement; ``shuffled``, all
    prompts under permuted labels; ``random``, no calibration but a plane drawn uniformly. In a
    paired dataset partners are drawn together and swap their labels or keep them.

    Bootstrap and subsamples share prompts with the full sample: how far they stray from it says
    how much the calibration owes to the choice of these prompts among prompts of their sort.

    Args:
        acts: what would be calibrated on.
        n_resamples: draws of each kind and size.
        sizes: of the subsamples, in prompts per class; default 8, 16, 32, … below the full number.
        streams: as in :func:`ss_lens.calibrate`.
        seed: of all draws.

    Returns:
        ``draws`` with ``kind``, ``n_positive`` and ``n_negative`` prompts, ``draw``; the principal
        angles to the full sample's plane in degrees, ``angle_1_deg``, the smaller, and
        ``angle_2_deg``; ``b1_angle_deg`` to its ``b1`` (0 to 180); ``n_selected``;
        ``direction_site``; ``agreement``, the mean cosine similarity over pairs of candidates;
        ``auroc`` along ``b1`` at the direction site for the prompts and labels of the draw, and
        ``held_out_auroc`` for the prompts left out, with their true labels.

        ``sites`` with ``kind`` (``bootstrap``, ``subsample`` or ``shuffled``), the numbers of
        prompts, ``site``, ``layer``, ``stream``; ``selected`` and ``is_direction_site`` in the full
        sample; ``share_selected`` and ``share_direction`` of the draws; per class the full sample's
        mean projection of the unit-normalised activations onto its ``b1`` and two central 95 %
        intervals over the draws: ``_own_low``, ``_own_high`` onto each draw's own ``b1`` and
        ``_fixed_low``, ``_fixed_high`` onto the full sample's.

    Raises:
        UserError: fewer than two prompts in a class or two draws, a size out of range, or an
            error of the calibration other than that it selects no site.
    """
    acts = acts.restricted_to(streams)
    spec = acts.spec
    smaller = min(spec.n_positive, spec.n_negative)
    if smaller < 2 or n_resamples < 2:
        raise UserError(
            f"stability needs at least 2 prompts per class and 2 draws; got {spec.n_positive} "
            f"positive and {spec.n_negative} negative prompts and n_resamples={n_resamples}."
        )
    if sizes is None:
        sizes = tuple(2**k for k in range(3, smaller.bit_length()) if 2**k < smaller)
    plan: list[tuple[str, Resamples]] = [("full", resampling.everything(spec))]
    for kind, draw in (("bootstrap", resampling.bootstrap), ("shuffled", resampling.shuffled)):
        plan.append((kind, draw(spec, n_resamples, derive_generator(seed, "stability", kind))))
    for size in sizes:
        generator = derive_generator(seed, "stability", "subsample", size)
        plan.append(("subsample", resampling.subsample(spec, size, n_resamples, generator)))
    with progress_bar(sum(len(drawn) for _, drawn in plan), "recalibrating", "draw") as bar:
        found = [(kind, drawn, recalibrate(acts, drawn, bar.update)) for kind, drawn in plan]
    full = found[0][2]
    anywhere = random_planes(acts, n_resamples, derive_generator(seed, "stability", "random"))
    once = resampling.everything(spec, n_resamples)
    draws = [_draw_rows(acts, full, *part) for part in (*found, ("random", once, anywhere))]
    sites = [_site_rows(acts, full, *part) for part in found[1:]]
    return Stability(pd.concat(draws, ignore_index=True), pd.concat(sites, ignore_index=True))


def principal_angles_deg(a: Plane, b: Plane) -> tuple[float, float]:
    """The two principal angles between planes, the smaller first, each 0 to 90 degrees.

    The cosines are the singular values of the bases' product, the sines those of what one basis has
    outside the other plane; both together keep the digits at either end. Source: Björck and Golub
    1973, doi:10.1090/S0025-5718-1973-0348991-3.
    """
    first, second = a.basis.double(), b.basis.double()
    product = second @ first.T
    cosines = torch.linalg.svdvals(product)
    sines = torch.linalg.svdvals(second - product @ first).flip(0)
    small, large = torch.rad2deg(torch.atan2(sines, cosines)).tolist()
    return small, large


def _draw_rows(
    acts: Activations, full: Recalibrated, kind: str, drawn: Resamples, found: Recalibrated
) -> pd.DataFrame:
    reference = full.planes[0]
    angles = [principal_angles_deg(reference, plane) for plane in found.planes]
    names = [None if site is None else str(acts.sites[site]) for site in found.direction_sites]
    return pd.DataFrame(
        {
            "kind": kind,
            **_sizes(drawn),
            "draw": range(len(drawn)),
            "angle_1_deg": [small for small, _ in angles],
            "angle_2_deg": [large for _, large in angles],
            "b1_angle_deg": [_angle_deg(reference.b1, plane.b1) for plane in found.planes],
            "n_selected": found.selected.sum(dim=1).numpy(),
            "direction_site": pd.Series(names, dtype="object"),
            "agreement": found.agreement.numpy(),
            "auroc": found.auroc.numpy(),
            "held_out_auroc": found.held_out_auroc.numpy(),
        }
    )


def _site_rows(
    acts: Activations, full: Recalibrated, kind: str, drawn: Resamples, found: Recalibrated
) -> pd.DataFrame:
    chosen = np.array(found.direction_sites)
    places = np.arange(len(acts.sites))
    table = pd.DataFrame(
        {
            "kind": kind,
            **_sizes(drawn),
            "site": [str(site) for site in acts.sites],
            "layer": [site.layer for site in acts.sites],
            "stream": [site.stream for site in acts.sites],
            "selected": full.selected[0].numpy(),
            "is_direction_site": places == full.direction_sites[0],
            "share_selected": found.selected.double().mean(dim=0).numpy(),
            "share_direction": (chosen[:, None] == places).mean(axis=0),
        }
    )
    fixed = means_along(acts, drawn, full.planes[0].b1)
    for label in style.CLASS_COLOURS:
        table[label] = getattr(full.means, label)[0].numpy()
        for name, means in (("own", found.means), ("fixed", fixed)):
            low, high = percentile_interval(getattr(means, label).double().numpy())
            table[f"{label}_{name}_low"], table[f"{label}_{name}_high"] = low, high
    return table


def _sizes(drawn: Resamples) -> dict[str, int]:
    return {f"n_{label}": int(getattr(drawn, label)[0].sum()) for label in style.CLASS_COLOURS}


def _angle_deg(a: Float[Tensor, "d_model"], b: Float[Tensor, "d_model"]) -> float:
    """By the half-angle formula, which keeps its digits for small angles."""
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))
