"""Perplexity of answers, and of texts on their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.capture import check_unhooked
from ss_lens.core.checks import check_positive, check_texts
from ss_lens.core.errors import UserError
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, Tokens
from ss_lens.scoring.continuations import (
    AT_ONCE,
    BATCH_SIZE,
    Continuation,
    answers,
    log_probabilities,
    passes,
    start_of,
)
from ss_lens.scoring.registry import Column, Score, ScoreInput

PAPER_PERPLEXITY_LIMIT = 2.0
"""Above it, arXiv 2601.19375 (Figure 3) marks an angle as collapsed. It holds there for the mean
over 104 greedy answers of their perplexity under the steered model that wrote them; under another
model normal text exceeds it."""

_SELF_PERPLEXITY = "perplexity would be that of the steered model, which finds its own loops fluent"


def answer_perplexity(
    model: TransformerBridge,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Measure each answer's perplexity given its prompt, under the unsteered model.

    One teacher-forced pass over prompt and answer. For the judgement of a second model, call it
    with that.

    Args:
        model: without hooks. A steered model finds its own loops fluent (arXiv 2601.19375 scored
            perplexity so; :func:`ss_lens.scoring.published.published_perplexity`).
        prompts: the users' turns.
        responses: one per prompt.
        batch_size: answers per pass; changes the speed, not the result.
        chat: system prompt, date and further arguments of the template.

    Returns:
        One row per answer: ``perplexity``, exp of ``mean_nll``, the mean negative log-probability
        in nats per token, and ``n_tokens``. An answer without tokens has no perplexity: NaN. The
        end of the turn is not scored.

    Raises:
        UserError: the model carries hooks; prompts and responses that do not pair up or do not fit
            into the context; log-probabilities that are not finite.
    """
    check_unhooked(model, _SELF_PERPLEXITY)
    return score(model, answers(model, prompts, responses, chat), batch_size)


def text_perplexity(
    model: TransformerBridge,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """Measure each text's perplexity on its own, without a template, under the unsteered model.

    As lm-eval's ``loglikelihood_rolling`` (``HFLM``): a BOS token, or EOS where the tokenizer has
    none, stands before the text; a text longer than the context is scored in windows that follow
    one another, the last one filled up with text before it. lm-eval also scores the BOS that some
    tokenizers add by themselves, unless given ``add_bos_token=False``; here it never counts as
    text.

    Args:
        model: without hooks.
        texts: any texts.
        max_length: tokens per window, at most the context, which is the default. A window's logits
            are held at once.
        batch_size: windows per pass; changes the speed, not the result.

    Returns:
        The columns of :func:`answer_perplexity`; ``-mean_nll * n_tokens`` is lm-eval's
        log-likelihood.

    Raises:
        UserError: the model carries hooks, a ``max_length`` that does not fit, or log-probabilities
            that are not finite.
    """
    check_unhooked(model, _SELF_PERPLEXITY)
    check_texts("texts", texts)
    limit = model.cfg.n_ctx
    length = limit if max_length is None else max_length
    if not 1 <= length <= limit:
        raise UserError(
            f"max_length is {max_length}; expected 1 to {limit}, the context of "
            f"{model.cfg.model_name}."
        )
    tokenizer = model.tokenizer
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if prefix is None:
        raise UserError(
            f"the tokenizer of {model.cfg.model_name} has neither a BOS nor an EOS token to set "
            "before a text; use answer_perplexity."
        )
    tokens = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    windows = [_windows((prefix, *ids), length) for ids in tokens]
    parts = score(model, [window for group in windows for window in group], batch_size)
    of_text = np.repeat(np.arange(len(windows)), [len(group) for group in windows])
    nll = np.bincount(of_text, parts["mean_nll"] * parts["n_tokens"], minlength=len(windows))
    counts = np.bincount(of_text, parts["n_tokens"], minlength=len(windows)).astype(int)
    return _table(nll, counts)


def perplexity_violations(
    perplexities: Sequence[float | int] | pd.Series, limit: float | int = PAPER_PERPLEXITY_LIMIT
) -> pd.Series:
    """Return whether each answer's perplexity exceeds ``limit``; undefined exceeds nothing.

    arXiv 2601.19375 flags angles by a mean (:func:`published.published_violation`), which hides a
    few collapsed answers behind many good ones.
    """
    check_positive("limit", limit)
    return pd.Series(perplexities, dtype=float) > limit


@torch.inference_mode()
def score(
    model: TransformerBridge, continuations: Sequence[Continuation], batch_size: int
) -> pd.DataFrame:
    """Return the columns of :func:`answer_perplexity` under the model, hooks included."""
    counts = np.array([len(continuation.scored) for continuation in continuations], dtype=int)
    nll = np.zeros(len(continuations))
    rows = [int(row) for row in counts.nonzero()[0]]
    start = start_of(model, continuations, rows)
    for run in passes(model, continuations, rows, batch_size, "perplexity"):
        found = zip(run.batch.rows, run.logits(model, start), run.continuations, strict=True)
        for row, logits, continuation in found:
            nll[row] = _nll(logits, continuation.scored)
    if not np.isfinite(nll).all():
        worst = continuations[int((~np.isfinite(nll)).argmax())]
        raise UserError(
            f"the log-probability of {model.tokenizer.decode(list(worst.scored))[:40]!r} is not "
            f"finite under {model.cfg.model_name}; load the model in float32 or bfloat16 and check "
            "its weights."
        )
    return _table(nll, counts)


def _nll(logits: Float[Tensor, "token vocab"], scored: Tokens) -> float:
    """Summed negative log-probability in nats."""
    targets = torch.tensor(scored, device=logits.device).unsqueeze(1)
    pieces = zip(logits.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
    return -sum(float(log_probabilities(some).gather(1, ids).sum()) for some, ids in pieces)


def _windows(sequence: Tokens, length: int) -> list[Continuation]:
    """All tokens of ``sequence`` after the first, each scored once, reading ``length`` at most."""
    found = []
    for start in range(1, len(sequence), length):
        end = min(start + length, len(sequence))
        found.append(Continuation(sequence[max(0, end - 1 - length) : start], sequence[start:end]))
    return found


def _table(nll: np.ndarray, counts: np.ndarray) -> pd.DataFrame:
    mean = np.where(counts > 0, nll / np.maximum(counts, 1), np.nan)
    return pd.DataFrame({"perplexity": np.exp(mean), "mean_nll": mean, "n_tokens": counts})


def _of_answers(given: ScoreInput) -> pd.DataFrame:
    rows = given.answers
    return answer_perplexity(
        given.model,
        rows["prompt"].tolist(),
        rows["response"].tolist(),
        batch_size=given.batch_rows,
        chat=given.chat,
    )


SCORE = Score(
    name="perplexity",
    columns=(
        Column("perplexity", "perplexity", better="lower", undefined=True),
        Column("mean_nll", undefined=True),
        Column("n_tokens"),
    ),
    needs="answers",
    measure=_of_answers,
    place=30,
)
