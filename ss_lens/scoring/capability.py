"""Benchmark accuracy, and what steering leaves of it."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from typing import Any, cast

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_whole
from ss_lens.core.errors import UserError
from ss_lens.geometry.operators import Operator
from ss_lens.models.chat import DEFAULT_FORMAT
from ss_lens.models.templates import on_date
from ss_lens.scoring.benchmarks import BASICS, load_tasks
from ss_lens.stats.bootstrap import percentile_interval, resampled_counts
from ss_lens.stats.intervals import mean_interval
from ss_lens.steering.steer import steer

_RATIO_RESAMPLES = 10_000


def capability(
    model: TransformerBridge,
    tasks: Sequence[str] = (BASICS,),
    *,
    calibration: Calibration | None = None,
    operator: Operator | None = None,
    metric: str | None = None,
    limit: int | None = None,
    chat_template: bool = False,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Score benchmark items with lm-eval, one row per item.

    Prompts and choices are plain text with the task's own examples, tokenised as TransformerLens
    does (with a BOS token where the tokenizer has one).

    Args:
        model: the model; steered by ``calibration`` and ``operator``, and by any surrounding
            :func:`ss_lens.steer`.
        tasks: ``"basics"`` (embedded, needs no network); a ``.jsonl`` file with a question per
            line; a ``.yaml`` task file of lm-eval; or any name that lm-eval knows, such as those in
            ``TINY_BENCHMARKS``.
        calibration: plane and sites to steer at; ``None`` for the unsteered model.
        operator: what to do there, with one strength for all.
        metric: which of a task's metrics to keep; ``None`` keeps the first. It must be a score
            between 0 and 1 of each item, higher being better.
        limit: the first items of each task only.
        chat_template: put prompts into the user's turn of the model's chat template, and a task's
            examples into turns before it; a template that reads the clock is given the date that
            :class:`ss_lens.models.chat.ChatFormat` has by default.
        batch_size: sequences per forward pass; changes the speed, not the result.

    Returns:
        Columns ``task``, ``item``, ``metric``, ``score``, in lm-eval's order of items.

    Raises:
        UserError: lm-eval is not installed, a task or metric is unknown or unavailable, or a
            strength is given per batch row.
    """
    if isinstance(tasks, str):
        raise UserError(f"tasks must be a list; got one text. Write [{tasks!r}].")
    if not tasks:
        raise UserError(f"there is no task; name at least one, for example {BASICS!r}.")
    if (calibration is None) != (operator is None):
        raise UserError("give both a calibration and an operator to steer, or neither.")
    if operator is not None and operator.rows is not None:
        raise UserError(
            f"{operator!r} has a strength for each of {operator.rows} rows, but lm-eval forms its "
            "own batches; give one strength and call once for each."
        )
    if limit is not None:
        check_whole("limit", limit, at_least=1)
    check_whole("batch_size", batch_size, at_least=1)
    if chat_template and model.tokenizer.chat_template is None:
        raise UserError(f"{model.cfg.model_name} has no chat template; set chat_template=False.")
    with _lm_eval_says_nothing():
        loaded = load_tasks(tasks)
        lm = _harness(model, batch_size)
    steering = (
        nullcontext()
        if calibration is None or operator is None
        else steer(model, calibration, operator)
    )
    from lm_eval.evaluator import evaluate

    with steering:
        results = evaluate(
            lm,
            {"tasks": loaded},
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
        )
    samples = cast("dict[str, Any]", results)["samples"]
    tables = [_scores(name, loaded[name], samples[name], metric) for name in loaded]
    return pd.concat(tables, ignore_index=True)


def accuracy(items: pd.DataFrame) -> pd.DataFrame:
    """Average the score of each task, from the rows of :func:`capability`.

    Every item counts the same. For the tiny benchmarks this is the accuracy on their 100 items, not
    the estimate for the whole benchmark that arXiv 2402.14992 derives from them.

    Returns:
        Columns ``task``, ``metric``, ``n``, ``accuracy``, ``low``, ``high`` (95 %) and
        ``interval``: ``wilson`` where items are right or wrong, else ``bootstrap`` (BCa over
        items).

    Raises:
        UserError: a score is undefined.
    """
    rows = []
    for key, group in items.groupby(["task", "metric"], sort=False):
        task, metric = cast("tuple[str, str]", key)
        scores = group["score"].to_numpy(float)
        binary = bool(np.isin(scores, (0, 1)).all())
        outcomes = pd.Series(scores.astype(bool) if binary else scores)
        low, high = mean_interval(outcomes, np.random.default_rng(0))
        kind = "wilson" if binary else "bootstrap"
        rows.append((task, metric, len(scores), scores.mean(), low, high, kind))
    names = ["task", "metric", "n", "accuracy", "low", "high", "interval"]
    return pd.DataFrame(rows, columns=names)


def retention(steered: pd.DataFrame, unsteered: pd.DataFrame) -> pd.DataFrame:
    """Relate the accuracy of each task to that of the unsteered model.

    The interval resamples items, each with both of its scores. It is the percentile bootstrap of
    the ratio of means, not BCa: draws in which the unsteered model scores nothing have no ratio and
    are left out. A model that guesses keeps chance / unsteered, not 0.

    Args:
        steered: rows of :func:`capability`.
        unsteered: the same items, without steering.

    Returns:
        Columns ``task``, ``metric``, ``n``, ``unsteered``, ``steered``, ``retention``, ``low``,
        ``high`` (95 %); the last three NaN where the unsteered model scores nothing.

    Raises:
        UserError: the two do not hold the same items, or a score is undefined.
    """
    item = ["task", "metric", "item"]
    both = steered.merge(unsteered, on=item, how="outer", suffixes=("_s", "_u"), indicator=True)
    repeated = both[both.duplicated(item)]
    odd = pd.concat([both[both["_merge"] != "both"], repeated])
    if len(odd):
        first = odd.iloc[0]
        raise UserError(
            f"the two runs do not hold the same items, each once: item {first['item']} of "
            f"{first['task']!r} ({first['metric']}) has no partner or several; run both with the "
            "same tasks, metric and limit."
        )
    if undefined := int(np.isnan(both[["score_s", "score_u"]].to_numpy(float)).any(axis=1).sum()):
        raise UserError(
            f"{undefined} of {len(both)} items have an undefined score (NaN), expected numbers "
            "from 0 to 1; drop these items from both runs."
        )
    rows = []
    for key, group in both.groupby(["task", "metric"], sort=False):
        task, metric = cast("tuple[str, str]", key)
        pairs = group[["score_s", "score_u"]].to_numpy(float)
        after, before = pairs.mean(axis=0)
        ratio = low = high = math.nan
        if before > 0:
            distinct, occurrences = np.unique(pairs, axis=0, return_counts=True)
            drawn = resampled_counts(occurrences, _RATIO_RESAMPLES, np.random.default_rng(0))
            means = drawn @ distinct / len(pairs)
            defined = means[:, 1] > 0
            ratio = after / before
            low, high = map(float, percentile_interval(means[defined, 0] / means[defined, 1]))
        rows.append((task, metric, len(pairs), before, after, ratio, low, high))
    names = ["task", "metric", "n", "unsteered", "steered", "retention", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _harness(model: TransformerBridge, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    tokenizer = copy.deepcopy(model.tokenizer)  # it is given a padding token
    if isinstance(tokenizer.chat_template, str):
        today = date.fromisoformat(DEFAULT_FORMAT.date)
        tokenizer.chat_template = on_date(today, tokenizer.chat_template)
    make = cast(Any, HFLM)  # its signature is lost in a decorator
    return make(
        # TransformerLens' hooks sit inside the Hugging Face model, so they act here too.
        pretrained=model.original_model,
        backend="causal",
        tokenizer=tokenizer,
        max_length=model.cfg.n_ctx,
        batch_size=batch_size,
        softmax_dtype="float32",
    )


def _scores(
    name: str, task: Any, samples: Sequence[dict[str, Any]], metric: str | None
) -> pd.DataFrame:
    chosen = metric or samples[0]["metrics"][0]
    kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    scores = [sample.get(chosen) for sample in kept]
    if not task.higher_is_better().get(chosen) or not all(map(_is_share, scores)):
        raise UserError(
            f"metric {chosen!r} of task {name!r} is not a score between 0 and 1 of each item, "
            f"higher being better; its metrics are {', '.join(samples[0]['metrics'])}."
        )
    items = [sample["doc_id"] for sample in kept]
    return pd.DataFrame(
        {
            "task": name,
            "item": items,
            "metric": chosen,
            "score": [float(cast(Any, s)) for s in scores],
        }
    )


def _is_share(score: object) -> bool:
    return isinstance(score, int | float | np.number) and 0 <= float(score) <= 1


@contextmanager
def _lm_eval_says_nothing() -> Iterator[None]:
    """Silence remarks on how the model and the tasks were passed; the run itself logs as usual."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
