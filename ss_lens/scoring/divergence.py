"""Kullback–Leibler divergence of the steered model's predictions on given text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.capture import check_unhooked
from ss_lens.calibration.calibration import Calibration
from ss_lens.core.errors import UserError
from ss_lens.generation.angle_batch import Angled, at_angles, checked_angles
from ss_lens.generation.shared_start import SharedStart
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.continuations import (
    AT_ONCE,
    BATCH_SIZE,
    answers,
    check_one_strength,
    log_probabilities,
    passes,
    start_of,
)
from ss_lens.scoring.registry import Column, Score
from ss_lens.steering.positions import ALL_POSITIONS, GeneratedOnly, Positions
from ss_lens.steering.steer import steer


def kl_divergence(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    positions: Positions = ALL_POSITIONS,
    batch_size: int = BATCH_SIZE,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    r"""Measure KL(unsteered ‖ steered) of the next-token distributions along each answer.

    :math:`\sum_v p(v) \ln \frac{p(v)}{q(v)}` with p of the unsteered and q of the steered model, at
    every position that predicts a token of the answer, both models reading the same text: the
    unsteered model's own answers to harmless prompts, for instance, tell what steering does to what
    it should leave alone.

    Args:
        model: without hooks.
        calibration: as in :func:`ss_lens.steer`.
        operator: with one strength, not one per row.
        prompts: the users' turns.
        responses: one per prompt; with an empty one, only what follows the prompt is compared.
        positions: which tokens are steered; those of ``responses`` count as generated.
        batch_size: answers per pass; changes the speed, not the result. The logits of two passes
            are held at once.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per answer: ``kl_mean`` in nats per token (NaN for an empty answer), ``kl_first`` in
        nats, at the first token of the answer, and ``n_tokens``.

    Raises:
        UserError: the model carries hooks, one strength per row, logits that are not finite, or
            what :func:`ss_lens.scoring.perplexity.answer_perplexity` and :func:`ss_lens.steer`
            raise.
    """
    check_one_strength(operator)
    (table,) = _divergences(
        model, calibration, [operator], prompts, responses, positions, batch_size, chat
    )
    return table


def sweep_kl_divergence(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    prompts: Sequence[str],
    responses: Sequence[str],
    angles_deg: Sequence[float | int] | np.ndarray,
    *,
    batch_size: int = BATCH_SIZE,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Measure :func:`kl_divergence` at every angle, computing the unsteered model's part once.

    Returns:
        Columns ``prompt_index``, ``prompt``, ``angle_deg``, ``kl_mean``, ``kl_first``; angle after
        angle, each with the prompts in their order.
    """
    angles = checked_angles(operator, angles_deg)
    operators = [at_angles(operator, angle) for angle in angles]
    found = _divergences(
        model, calibration, operators, prompts, responses, ALL_POSITIONS, batch_size, chat
    )
    places = {"prompt_index": range(len(prompts)), "prompt": [*prompts]}
    tables = [
        pd.concat(
            [pd.DataFrame({**places, "angle_deg": angle}), table.drop(columns="n_tokens")], axis=1
        )
        for angle, table in zip(angles, found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


@torch.inference_mode()
def _divergences(
    model: TransformerBridge,
    calibration: Calibration,
    operators: Sequence[Operator],
    prompts: Sequence[str],
    responses: Sequence[str],
    positions: Positions,
    batch_size: int,
    chat: ChatFormat,
) -> list[pd.DataFrame]:
    """One table for each operator, all from one unsteered pass."""
    check_unhooked(model, "there would be no unsteered model to compare with")
    given = answers(model, prompts, responses, chat)
    # Steering that begins in the answer is felt only where some of the answer has been read.
    read = 2 if isinstance(positions, GeneratedOnly) else 0
    rows = [row for row, continuation in enumerate(given) if len(continuation.scored) >= read]
    first, total = np.zeros((2, len(operators), len(given)))
    start = start_of(model, given, rows)
    starts: dict[int, SharedStart] = {}  # made with the first pass of each operator
    for run in passes(model, given, rows, batch_size, "divergence"):
        plain = run.logits(model, start)
        for place, operator in enumerate(operators):
            with steer(model, calibration, operator, positions=positions):
                if place not in starts:
                    starts[place] = start_of(model, given, rows)
                steered = run.logits(model, starts[place])
            for row, before, after in zip(run.batch.rows, plain, steered, strict=True):
                kl = _kl(before, after)
                if torch.isnan(kl).any():
                    raise UserError(
                        f"the divergence on {responses[row][:40]!r} is undefined (NaN) under "
                        f"{operator!r}, expected a number: logits of {model.cfg.model_name} are "
                        "not finite. Check the weights, adapters and the operator's strength, or "
                        "load the model in float32 or bfloat16."
                    )
                first[place, row], total[place, row] = float(kl[0]), float(kl.sum())
    counts = np.array([len(continuation.scored) for continuation in given], dtype=int)
    means = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return [
        pd.DataFrame({"kl_mean": means[place], "kl_first": first[place], "n_tokens": counts})
        for place in range(len(operators))
    ]


def _kl(
    before: Float[Tensor, "token vocab"], after: Float[Tensor, "token vocab"]
) -> Float[Tensor, "token"]:
    """At each position, some positions at a time."""
    parts = []
    for some, others in zip(before.split(AT_ONCE), after.split(AT_ONCE), strict=True):
        log_p, log_q = log_probabilities(some), log_probabilities(others)
        terms = log_p.exp() * (log_p - log_q)
        # A token that the unsteered model rules out adds nothing: p ln p → 0.
        parts.append(terms.masked_fill(log_p == -torch.inf, 0).sum(dim=-1))
    return torch.cat(parts).clamp(min=0)  # rounding may leave a little less


SCORE = Score(
    name="kl",
    columns=(
        Column("kl_mean", "KL", better="lower", undefined=True),
        Column("kl_first"),
    ),
    needs="unsteered answers",
    measure=lambda given: sweep_kl_divergence(
        given.model,
        given.calibration,
        given.operator,
        given.prompts,
        given.unsteered,
        given.angles_deg,
        chat=given.chat,
        batch_size=given.batch_rows,
    ),
    place=40,
)
