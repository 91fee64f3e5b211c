"""Gated against ungated steering on prompts of several sources, at the same operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

import ss_lens
from analyses.prompt_sources import check_sources
from ss_lens import Calibration, Gate, Trace, steer
from ss_lens.activations.capture import check_unhooked
from ss_lens.core.checks import check_is
from ss_lens.generation.angle_batch import BATCH_ROWS
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.continuations import check_one_strength
from ss_lens.scoring.divergence import kl_divergence
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.stats.bootstrap import derive_rng
from ss_lens.stats.intervals import mean_interval
from ss_lens.stats.paired import sign_flip_p_value

UNSTEERED, UNGATED, GATED = CONDITIONS = ("unsteered", "ungated", "gated")
ANSWER_TOKENS = 16


def measure(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    gate: Gate,
    sources: Mapping[str, Sequence[str]],
    *,
    max_new_tokens: int = ANSWER_TOKENS,
    seed: int = 0,
    batch_size: int = BATCH_ROWS,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Refusal score and divergence of each source of prompts: unsteered, steered, and gated.

    A closed gate leaves every bit as it is, and an open one steers as none would. So a prompt's
    divergence under the gate is that without the gate where it is open, and zero where it is
    closed.

    Args:
        model: the model that calibration and gate were made on, without hooks.
        calibration: plane and sites.
        operator: with one strength for all rows.
        gate: reads before the first steered site.
        sources: prompts by name, none of them used to fit calibration or gate.
        max_new_tokens: where the unsteered answers, along which the divergence is taken, are cut.
        seed: of bootstrap and permutations.
        batch_size: prompts per forward pass; changes the speed, not the result.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per source and ``condition`` (``unsteered``, ``ungated``, ``gated``): of ``n``
        prompts the share that is steered, ``steered``, with its Wilson interval ``steered_low``,
        ``steered_high``; the means ``refusal_score`` in nats (BCa interval ``low``, ``high``) and
        ``opening_mass``; the mean paired ``change`` of the score from the unsteered model with
        ``change_low``, ``change_high`` and the sign-flip ``p_value``; the mean divergence ``kl`` in
        nats per token, with ``kl_low``, ``kl_high``, over the prompts with an answer.

    Raises:
        UserError: no source or an empty one, a model with hooks, or what :func:`ss_lens.steer` and
            the scores raise.
    """
    check_one_strength(operator)
    check_is("gate", gate, (Gate,), "a gate from ss_lens.Gate.from_dev(...)")
    check_sources(sources, "gating is compared")
    check_unhooked(model, "there would be no unsteered model to compare with")
    prompts = [prompt for group in sources.values() for prompt in group]
    labels = pd.Series([name for name, group in sources.items() for _ in group])
    trace, options = Trace(), {"batch_size": batch_size, "chat": chat}
    scores = {UNSTEERED: refusal_score(model, prompts, **options)}
    with steer(model, calibration, operator):
        scores[UNGATED] = refusal_score(model, prompts, **options)
    with steer(model, calibration, operator, when=gate, trace=trace):
        scores[GATED] = refusal_score(model, prompts, **options)
    is_open = trace.gates().drop_duplicates("row").set_index("row")["is_open"].sort_index()
    answered = ss_lens.generate(
        model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, chat=chat
    )
    kl = kl_divergence(model, calibration, operator, prompts, answered, chat=chat)["kl_mean"]
    steered = {
        UNSTEERED: pd.Series(False, index=labels.index),
        UNGATED: pd.Series(True, index=labels.index),
        GATED: is_open,
    }
    rows = []
    for name in sources:
        for condition in CONDITIONS:
            is_steered = steered[condition].to_numpy(dtype=bool)
            table = scores[condition].assign(
                change=scores[condition]["refusal_score"] - scores[UNSTEERED]["refusal_score"],
                steered=is_steered,
                kl=kl.where(is_steered | kl.isna().to_numpy(), 0.0),
            )
            here = table.loc[(labels == name).to_numpy()]
            rows.append({"source": name, "condition": condition, **_summary(here, seed, name)})
    return pd.DataFrame(rows)


def _summary(table: pd.DataFrame, seed: int, name: str) -> dict[str, object]:
    change = table["change"].to_numpy(dtype=float)
    row: dict[str, object] = {"n": len(table)}
    for column, prefix in (
        ("steered", "steered_"),
        ("refusal_score", ""),
        ("change", "change_"),
        ("kl", "kl_"),
    ):
        values = table[column].dropna()
        low, high = mean_interval(values, derive_rng(seed, "gating", name, column))
        row |= {column: float(values.mean()), f"{prefix}low": low, f"{prefix}high": high}
    generator = derive_generator(seed, "gating", name, "permutation")
    p_value = sign_flip_p_value(change, generator) if change.any() else 1.0
    return {**row, "opening_mass": float(table["opening_mass"].mean()), "p_value": p_value}
