"""The effect of steering on refusing openings, site by site: what each does alone, and in company.

Effects of single sites need not add up to that of all of them. So each site is measured twice:
steered alone against the unsteered model, and all sites against all but this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from analyses.site_effects.conditions import (
    ALL,
    CLASSES,
    EFFECT_COLUMNS,
    LEFT_OUT,
    ONLY,
    RANDOM,
)
from ss_lens import Calibration, ContrastiveDataset, Explicit, Plane, Site, UserError, steer
from ss_lens.calibration.selection import Selection
from ss_lens.core.checks import check_is, check_whole
from ss_lens.core.progress import progress_bar
from ss_lens.generation.angle_batch import BATCH_ROWS
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.stats.bootstrap import bca_mean_interval, derive_rng

DRAWS = 2


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    data: ContrastiveDataset,
    *,
    draws: int = DRAWS,
    n_resamples: int = 2000,
    seed: int = 0,
    batch_size: int = BATCH_ROWS,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """The change of the refusal score that each steered site brings about.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        operator: with one strength for all rows.
        data: prompts that the calibration has not seen.
        draws: uniformly random planes that each site is steered in on its own, as a control.
        n_resamples: bootstrap draws over prompts.
        seed: of the bootstrap and of the planes.
        batch_size: prompts per forward pass; changes the speed, not the result.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per class and ``kind``: ``all sites``, once; and for each steered site ``this site
        alone``, ``left out`` and, for every ``draw``, ``random plane``. ``effect`` is a mean over
        ``n`` prompts in nats, with its 95 % BCa interval ``low``, ``high``: the score minus that of
        the unsteered model; for ``left out``, the score with all sites minus that with all but
        this one, which is what the site adds to the others. ``refusal_score`` and
        ``opening_mass`` are the means with the sites steered that the kind names (``left out``:
        all but this one). An operator that is the identity has effects of exactly zero.

    Raises:
        UserError: as :func:`ss_lens.steer` and
            :func:`ss_lens.scoring.refusal_score.refusal_score`; an operator that acts at the
            direction's site alone, or a strength per row.
    """
    check_is(
        "operator", operator, (Operator,), "an operator such as ss_lens.RotateBy(angle_deg=90)"
    )
    check_whole("draws", draws, at_least=0)
    if operator.needs_length or operator.rows is not None:
        raise UserError(
            f"site effects need an operator that acts at any site with one strength; got "
            f"{operator!r}. Use RotateBy(angle_deg=180)."
        )
    prompts = [prompt for label in CLASSES for prompt in getattr(data, label)]
    labels = np.repeat(CLASSES, [len(getattr(data, label)) for label in CLASSES])
    sites = calibration.selected_sites
    rows: list[dict[str, object]] = []
    with progress_bar(2 + len(sites) * (2 + draws), "site effects", "condition") as bar:

        def scored(made: Calibration | None) -> pd.DataFrame:
            """One row per prompt."""
            if made is None:
                table = refusal_score(model, prompts, batch_size=batch_size, chat=chat)
            else:
                with steer(model, made, operator):
                    table = refusal_score(model, prompts, batch_size=batch_size, chat=chat)
            bar.update()
            return table

        def add(
            kind: str, site: Site | None, draw: int, now: pd.DataFrame, effect: pd.Series
        ) -> None:
            for label in CLASSES:
                here = labels == label
                values = effect.to_numpy(float)[here]
                rng = derive_rng(seed, "site_effects", label)
                low, high = bca_mean_interval(values, rng, n_resamples)
                rows.append(
                    {
                        **{"kind": kind, "site": "" if site is None else str(site)},
                        "layer": pd.NA if site is None else site.layer,
                        "stream": "" if site is None else site.stream,
                        **{"draw": draw, "prompt_class": label, "effect": float(values.mean())},
                        **{"low": float(low), "high": float(high)},
                        "refusal_score": float(now.loc[here, "refusal_score"].mean()),
                        "opening_mass": float(now.loc[here, "opening_mass"].mean()),
                        "n": int(here.sum()),
                    }
                )

        unsteered, steered = scored(None), scored(calibration)
        without, full = unsteered["refusal_score"], steered["refusal_score"]
        add(ALL, None, 0, steered, full - without)
        for site in sites:
            alone = scored(at_sites(calibration, [site]))
            add(ONLY, site, 0, alone, alone["refusal_score"] - without)
            others = [other for other in sites if other != site]
            rest = scored(at_sites(calibration, others) if others else None)
            add(LEFT_OUT, site, 0, rest, full - rest["refusal_score"])
            for draw in range(draws):
                turned = scored(in_random_plane(at_sites(calibration, [site]), seed, draw))
                add(RANDOM, site, draw, turned, turned["refusal_score"] - without)
    return pd.DataFrame(rows, columns=[*EFFECT_COLUMNS]).astype({"layer": "Int64"})


def at_sites(calibration: Calibration, sites: Sequence[Site]) -> Calibration:
    """The calibration with its direction and plane, steering at these sites alone."""
    mask = torch.tensor([site in set(sites) for site in calibration.sites])
    table = calibration.selection.table.assign(selected=mask.numpy())
    rule = Explicit(sites=",".join(map(str, sites)))
    return replace(
        calibration,
        selection=Selection(mask, table),
        recipe=replace(calibration.recipe, rule=rule),
    )


def in_random_plane(calibration: Calibration, seed: int, draw: int) -> Calibration:
    """The calibration with a uniformly random plane, another one at every site and draw."""
    generator = derive_generator(seed, "site_effects", str(calibration.selected_sites[0]), draw)
    spans = torch.randn(2, calibration.plane.b1.numel(), generator=generator)
    return replace(calibration, plane=Plane.from_span(*spans))
