"""Sites chosen prompt by prompt against as many fixed ones, at the same operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

import ss_lens
from analyses.prompt_sources import check_sources
from analyses.site_effects.measures import at_sites
from ss_lens import Calibration, PromptSites, Trace, steer
from ss_lens.activations.capture import check_unhooked
from ss_lens.core.checks import check_is
from ss_lens.core.progress import progress_bar
from ss_lens.generation.angle_batch import BATCH_ROWS
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.continuations import check_one_strength
from ss_lens.scoring.divergence import Changed, changed_divergence
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.stats.bootstrap import derive_rng
from ss_lens.stats.intervals import mean_interval
from ss_lens.stats.paired import sign_flip_p_value

UNSTEERED, ALL, FIXED, CHOSEN = CONDITIONS = ("unsteered", "all sites", "fixed", "per prompt")
MEASURED = ("refusal_score", "change", "kl", "difference", "kl_difference")
ANSWER_TOKENS = 16


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    sites: PromptSites,
    sources: Mapping[str, Sequence[str]],
    *,
    max_new_tokens: int = ANSWER_TOKENS,
    seed: int = 0,
    batch_size: int = BATCH_ROWS,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Refusal score and divergence of each source of prompts, by how the sites are chosen.

    The fixed sites are those with the largest separation (:attr:`PromptSites.by_prior`), so the two
    ways steer as many sites and differ in what the prompt adds. As many sites need not mean the
    same divergence, which stands beside the score.

    Args:
        model: the model that calibration and sites were made on, without hooks.
        calibration: plane and the sites to choose from.
        operator: with one strength for all rows.
        sites: how they are chosen.
        sources: prompts by name, none of them used to fit calibration or sites.
        max_new_tokens: where the unsteered answers, along which the divergence is taken, are cut.
        seed: of bootstrap and permutations.
        batch_size: prompts per forward pass; changes the speed, not the result.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per source and ``condition`` (``unsteered``, ``all sites``, ``fixed``, ``per
        prompt``): ``n`` prompts, ``n_sites`` of each; ``shared``, which share of the sites is among
        the fixed ones; the means ``refusal_score`` in nats, its paired ``change`` from the
        unsteered model, the divergence ``kl`` in nats per token along the unsteered answers, and
        the paired ``difference`` and ``kl_difference`` from the fixed sites in score and
        divergence, each with its 95 % BCa interval ``_low``, ``_high``; ``p_value`` of the
        difference in score (sign flips); the mean ``opening_mass``.

    Raises:
        UserError: no source or an empty one, a model with hooks, or what :func:`ss_lens.steer` and
            the scores raise.
    """
    check_one_strength(operator)
    check_is("sites", sites, (PromptSites,), "sites from ss_lens.PromptSites.from_dev(...)")
    check_sources(sources, "sites are compared")
    check_unhooked(model, "there would be no unsteered model to compare with")
    prompts = [prompt for group in sources.values() for prompt in group]
    labels = np.array([name for name, group in sources.items() for _ in group])
    trace = Trace()
    ways = {
        ALL: partial(steer, model, calibration, operator),
        FIXED: partial(steer, model, at_sites(calibration, sites.by_prior), operator),
        CHOSEN: partial(steer, model, calibration, operator, sites=sites),
    }
    scores = {UNSTEERED: refusal_score(model, prompts, batch_size=batch_size, chat=chat)}
    kl = {UNSTEERED: pd.Series(0.0, index=range(len(prompts)))}
    with progress_bar(len(ways) + 1, "prompt sites", "way") as bar:
        for name, steered in ways.items():
            with steered(trace=trace) if name == CHOSEN else steered():
                scores[name] = refusal_score(model, prompts, batch_size=batch_size, chat=chat)
            bar.update()
        answered = ss_lens.generate(
            model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, chat=chat
        )
        changes = [Changed(name, steered) for name, steered in ways.items()]
        found = changed_divergence(model, changes, prompts, answered, chat=chat)
        kl |= {name: table["kl_mean"] for name, table in zip(ways, found, strict=True)}
        bar.update()
    n_sites = {UNSTEERED: 0, ALL: len(sites.sites), FIXED: sites.k, CHOSEN: sites.k}
    shared = _shared(trace, sites)
    rows = []
    for name in sources:
        for condition in CONDITIONS:
            score, cost = scores[condition]["refusal_score"], kl[condition]
            table = pd.DataFrame(
                {
                    **{"refusal_score": score, "kl": cost},
                    "change": score - scores[UNSTEERED]["refusal_score"],
                    "difference": score - scores[FIXED]["refusal_score"],
                    "kl_difference": cost - kl[FIXED],
                    "opening_mass": scores[condition]["opening_mass"],
                    "shared": shared if condition == CHOSEN else np.nan,
                }
            )
            here = table.loc[labels == name]
            told = {"source": name, "condition": condition, "n_sites": n_sites[condition]}
            rows.append({**told, **_summary(here, seed, name)})
    return pd.DataFrame(rows)


def _shared(trace: Trace, sites: PromptSites) -> pd.Series:
    """By prompt, the share of its sites that are among the fixed ones."""
    fixed = [str(site) for site in sites.by_prior]
    chosen = trace.sites().query("is_steered").drop_duplicates(["row", "site"])
    is_fixed = chosen.assign(shared=chosen["site"].isin(fixed))
    return is_fixed.groupby("row").agg(shared=("shared", "mean"))["shared"].sort_index()


def _summary(table: pd.DataFrame, seed: int, name: str) -> dict[str, object]:
    row: dict[str, object] = {"n": len(table)}
    for column in MEASURED:
        values = table[column].dropna()
        low, high = mean_interval(values, derive_rng(seed, "prompt sites", name, column))
        row |= {column: float(values.mean()), f"{column}_low": low, f"{column}_high": high}
    difference = table["difference"].to_numpy(dtype=float)
    generator = derive_generator(seed, "prompt sites", name, "permutation")
    row["p_value"] = sign_flip_p_value(difference, generator) if difference.any() else 1.0
    means = {column: float(table[column].mean()) for column in ("opening_mass", "shared")}
    return {**row, **means}
