"""What a user would do instead of steering, measured as steering is: score, answers, KL, cost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.baselines.candidates import Candidate, Way
from analyses.baselines.choosing import Chosen, choose
from analyses.baselines.subject import Subject
from analyses.baselines.ways import ROTATING, UNSTEERED
from analyses.budget.answered import Answered
from ss_lens import ContrastiveDataset, UserError
from ss_lens.core.progress import progress_bar
from ss_lens.models.chat import tokenize
from ss_lens.scoring.divergence import changed_divergence
from ss_lens.stats.paired import compare

ANSWER_TOKENS = 32


def measure(
    model: TransformerBridge,
    ways: Mapping[str, Way],
    dev: ContrastiveDataset,
    test: ContrastiveDataset,
    subject: Subject,
    *,
    budget: float | int | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
    seed: int = 0,
) -> pd.DataFrame:
    """Score, share that shows it, collapse, divergence and cost of each way on ``test``.

    The setting of each way is chosen on ``dev`` alone (:func:`analyses.baselines.choosing.choose`):
    the best mean score at which answers do not collapse; with a ``budget``, of a way with a dial
    the best strength that spends it. The divergence is KL(unsteered ‖ changed) along the unsteered
    model's own answers, the changed model reading its own prompt before them.

    Args:
        model: without hooks.
        ways: by name; ``rotating`` is what the others are compared with.
        dev: prompts that settings are chosen on.
        test: prompts that are reported, none of them in ``dev``.
        subject: the behaviour, and whether it is to become less or more.
        budget: nats per token on ``dev``, at which dials are compared; ``None`` lets each have its
            best.
        max_new_tokens: where answers are cut off.
        seed: of bootstrap and permutations.

    Returns:
        A row per way, class and metric: the columns of :func:`ss_lens.stats.paired.compare`, paired
        with ``rotating``, for the mean score (nats; ``refusal_score`` of refusal),
        ``opening_mass``, the share that shows the behaviour (``refused`` of refusal) and
        ``collapsed``, and ``kl`` (nats per token); beside them the ``setting``,
        whether it is ``admissible``, ``dev_score`` and ``dev_kl``, a ``note``, and the cost:
        ``seconds_per_answer`` here, ``prompt_tokens``, the mean length of what is read, and
        ``preparation_s``.

    Raises:
        UserError: a way is missing, the budget is not positive, dev and test share a prompt, or the
            model carries hooks.
    """
    _check(ways, dev, test, budget)
    plain = Answered.by(model, dev, max_new_tokens)
    chosen = choose(model, ways, plain, subject, budget, max_new_tokens)
    reported = Answered.by(model, test, max_new_tokens)
    cells, costs = [], []
    with progress_bar(len(ways), "measure", "way") as bar:
        for name, found in chosen.items():
            measured = _measured(reported, subject, found.candidate, max_new_tokens)
            cells.append(measured.cells.assign(variant=name, draw=0))
            costs.append(_cost(name, ways[name], found, measured))
            bar.update()
    names = subject.measures
    metrics = (names.score, "opening_mass", names.shown, "collapsed", "kl")
    table = compare(pd.concat(cells, ignore_index=True), metrics, ROTATING, seed=seed)
    return table.merge(pd.DataFrame(costs), on="variant", validate="m:1")


class Measured(NamedTuple):
    """One way on the test prompts, and what it took."""

    cells: pd.DataFrame
    seconds: float
    tokens: float


def _measured(
    texts: Answered, subject: Subject, candidate: Candidate, max_new_tokens: int
) -> Measured:
    model, prompts = texts.model, candidate.prompts(texts.prompts)
    scores = candidate.scores(model, subject, texts.prompts)
    began = time.perf_counter()
    with candidate.inside():
        answers = ss_lens.generate(
            model, prompts, max_new_tokens=max_new_tokens, chat=candidate.chat
        )
    seconds = (time.perf_counter() - began) / len(prompts)
    (kl,) = changed_divergence(
        model, [candidate.change(texts.prompts)], texts.prompts, texts.responses
    )
    told = subject.texts(texts.prompts, answers, scores["score"])
    cells = pd.DataFrame({"prompt_class": texts.classes})
    cells["prompt_index"] = cells.groupby("prompt_class").cumcount()
    cells[subject.measures.score] = scores["score"]
    cells[subject.measures.shown] = told["shown"]
    cells = cells.assign(
        opening_mass=scores["opening_mass"], collapsed=told["collapsed"], kl=kl["kl_mean"]
    )
    lengths = [len(ids) for ids in tokenize(model, prompts, candidate.chat)]
    return Measured(cells, seconds, sum(lengths) / len(lengths))


def _cost(name: str, way: Way, found: Chosen, measured: Measured) -> dict[str, object]:
    return {
        "variant": name,
        "setting": found.candidate.setting,
        "admissible": found.admissible,
        "dev_score": found.score,
        "dev_kl": found.kl,
        "note": found.note,
        "seconds_per_answer": measured.seconds,
        "prompt_tokens": measured.tokens,
        "preparation_s": way.preparation_s,
    }


def _check(
    ways: Mapping[str, Way],
    dev: ContrastiveDataset,
    test: ContrastiveDataset,
    budget: float | int | None,
) -> None:
    if missing := [name for name in (UNSTEERED, ROTATING) if name not in ways]:
        raise UserError(
            f"the ways lack {missing[0]!r}, which the others are compared with; got "
            f"{', '.join(ways)}. Take them from analyses.baselines.all_ways(...)."
        )
    check_budget(budget)
    if both := {*dev.positive, *dev.negative} & {*test.positive, *test.negative}:
        raise UserError(
            f"the prompt {min(both)[:60]!r} is in dev and in test, so settings would be chosen on "
            "what is reported; give disjoint parts, as dataset.split(...) does."
        )


def check_budget(budget: float | int | None) -> None:
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise UserError(
            f"the budget must be a positive, finite number of nats per token; got {budget}. Give "
            "0.3, or leave it out."
        )
