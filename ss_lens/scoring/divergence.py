"""Kullback–Leibler divergence of the steered model's predictions on given text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

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
from ss_lens.models import forward
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, Prompt
from ss_lens.models.loading.devices import device_of
from ss_lens.scoring.continuations import (
    AT_ONCE,
    BATCH_SIZE,
    Continuation,
    Pass,
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
    steered = partial(steer, model, calibration, operator, positions=positions)
    # Steering that begins in the answer is felt only where some of the answer has been read.
    read = 2 if isinstance(positions, GeneratedOnly) else 0
    changes = [Changed(repr(operator), steered)]
    (table,) = _divergences(model, changes, prompts, responses, batch_size, chat, read)
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
    changes = [Changed(repr(made), partial(steer, model, calibration, made)) for made in operators]
    found = _divergences(model, changes, prompts, responses, batch_size, chat)
    places = {"prompt_index": range(len(prompts)), "prompt": [*prompts]}
    tables = [
        pd.concat(
            [pd.DataFrame({**places, "angle_deg": angle}), table.drop(columns="n_tokens")], axis=1
        )
        for angle, table in zip(angles, found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True, eq=False)
class Changed:
    """The model with something changed, whose predictions are compared with the plain model's.

    Attributes:
        name: for messages.
        inside: under which it runs, such as ``lambda: steer(model, calibration, operator)``.
        prompts: what it reads in place of the plain model's prompts; ``None`` is the same.
        chat: its format; ``None`` is the same.
    """

    name: str
    inside: Callable[[], AbstractContextManager[object]]
    prompts: Sequence[Prompt] | None = field(default=None, repr=False)
    chat: ChatFormat | None = None


def changed_divergence(
    model: TransformerBridge,
    changes: Sequence[Changed],
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> list[pd.DataFrame]:
    """Measure KL(plain ‖ changed) along each answer, for changes of the model or of the prompt.

    As :func:`kl_divergence`, which is the special case of an operator; both models predict the same
    tokens of the answer, each after its own prompt.

    Args:
        model: without hooks.
        changes: each measured against the same passes of the plain model.
        prompts: of the plain model.
        responses: one per prompt.
        batch_size: answers per pass; changes the speed, not the result.
        chat: of the plain model.

    Returns:
        Of each change the table of :func:`kl_divergence`.

    Raises:
        UserError: as :func:`kl_divergence`.
    """
    return _divergences(model, changes, prompts, responses, batch_size, chat)


@torch.inference_mode()
def _divergences(
    model: TransformerBridge,
    changes: Sequence[Changed],
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    batch_size: int,
    chat: ChatFormat,
    read: int = 0,
) -> list[pd.DataFrame]:
    """One table for each change, all from one plain pass; of answers with ``read`` tokens alone."""
    check_unhooked(model, "there would be no unsteered model to compare with")
    given = answers(model, prompts, responses, chat)
    asked = [_asked(model, change, prompts, responses, chat, given) for change in changes]
    rows = [row for row, continuation in enumerate(given) if len(continuation.scored) >= read]
    first, total = np.zeros((2, len(changes), len(given)))
    start = start_of(model, given, rows)
    starts: dict[int, SharedStart] = {}  # made with the first pass of each change
    for run in passes(model, given, rows, batch_size, "divergence"):
        plain = run.logits(model, start)
        for place, (change, own) in enumerate(zip(changes, asked, strict=True)):
            again = run if own is given else _pass_over(model, own, run.batch.rows)
            with change.inside():
                if place not in starts:
                    starts[place] = start_of(model, own, rows)
                steered = again.logits(model, starts[place])
            for row, before, after in zip(run.batch.rows, plain, steered, strict=True):
                kl = _kl(before, after)
                if torch.isnan(kl).any():
                    raise UserError(
                        f"the divergence on {responses[row][:40]!r} is undefined (NaN) under "
                        f"{change.name}, expected a number: logits of {model.cfg.model_name} are "
                        "not finite. Check the weights, adapters and the operator's strength, or "
                        "load the model in float32 or bfloat16."
                    )
                first[place, row], total[place, row] = float(kl[0]), float(kl.sum())
    counts = np.array([len(continuation.scored) for continuation in given], dtype=int)
    means = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return [
        pd.DataFrame({"kl_mean": means[place], "kl_first": first[place], "n_tokens": counts})
        for place in range(len(changes))
    ]


def _asked(
    model: TransformerBridge,
    change: Changed,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    chat: ChatFormat,
    given: list[Continuation],
) -> list[Continuation]:
    """What the changed model reads: ``given`` itself where its prompts are the plain model's."""
    if change.prompts is None and change.chat is None:
        return given
    own = prompts if change.prompts is None else change.prompts
    return answers(model, own, responses, chat if change.chat is None else change.chat)


def _pass_over(
    model: TransformerBridge, continuations: Sequence[Continuation], rows: Sequence[int]
) -> Pass:
    """The pass over these rows, in this order."""
    (batch,) = forward.batches(
        [continuation.read for continuation in continuations],
        [rows],
        side="left",
        pad_id=forward.pad_id_of(model),
        device=device_of(model),
    )
    return Pass(batch, tuple(continuations[row] for row in rows))


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
