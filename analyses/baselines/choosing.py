"""The setting of each way, decided on dev alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.baselines.candidates import Candidate, Way
from analyses.baselines.subject import Subject
from analyses.budget.answered import Answered
from analyses.budget.matching import Curve
from ss_lens.core.progress import progress_bar
from ss_lens.experiments.dial.scan import CRITERIA
from ss_lens.scoring.divergence import changed_divergence

MOST_COLLAPSED = CRITERIA["weakened"].max_collapsed
OWN_KL = "no dial: at its own KL"


@dataclass(frozen=True, eq=False)
class Chosen:
    """A setting with what dev says of it.

    Attributes:
        admissible: whether few enough of its dev answers collapse; else it is the best by score.
        score: mean score of dev's prompts of the class that is to move, in nats.
        kl: mean over dev of KL from unsteered, in nats per token.
        note: why a budget does not apply to it.
    """

    candidate: Candidate
    admissible: bool
    score: float
    kl: float
    note: str = ""


def choose(
    model: TransformerBridge,
    ways: Mapping[str, Way],
    dev: Answered,
    subject: Subject,
    budget: float | int | None,
    max_new_tokens: int,
) -> dict[str, Chosen]:
    """The best setting of each way whose answers do not collapse; the best by score without any.

    Settings are ranked by the one-pass score of dev's prompts, and answered from the best on. With
    a budget those of a dial are the strengths that spend it
    (:meth:`analyses.budget.matching.Curve.crossings`); one that reaches it nowhere keeps its best,
    and the note says so.

    Args:
        model: without hooks.
        ways: by name.
        dev: its prompts with the unsteered answers.
        subject: whose score is to fall or to rise.
        budget: in nats per token, or ``None``.
        max_new_tokens: of the answers.
    """
    found = {}
    with progress_bar(len(ways), "choose", "way") as bar:
        for name, way in ways.items():
            candidates, note = [*way.candidates.values()], ""
            if budget is not None and way.at is None:
                note = OWN_KL
            elif budget is not None:
                candidates, note = _at_budget(way, dev, budget, candidates)
            found[name] = _best(model, candidates, dev, subject, max_new_tokens, note)
            bar.update()
    return found


def mean_kl(dev: Answered, candidates: Sequence[Candidate]) -> list[float]:
    """Mean over the prompts with an answer of KL from unsteered, of each candidate."""
    texts = dev.without_empty()
    changes = [candidate.change(texts.prompts) for candidate in candidates]
    tables = changed_divergence(dev.model, changes, texts.prompts, texts.responses)
    return [float(table["kl_mean"].mean()) for table in tables]


def _at_budget(
    way: Way, dev: Answered, budget: float | int, otherwise: list[Candidate]
) -> tuple[list[Candidate], str]:
    assert way.at is not None
    at = way.at
    curve = Curve(lambda some: mean_kl(dev, [at(strength) for strength in some]), way.strengths)
    matches = curve.crossings(budget)
    if matches[0].problem:
        return otherwise, matches[0].problem
    return [at(match.strength) for match in matches], ""


def _best(
    model: TransformerBridge,
    candidates: Sequence[Candidate],
    dev: Answered,
    subject: Subject,
    max_new_tokens: int,
    note: str,
) -> Chosen:
    moved = [p for p, of in zip(dev.prompts, dev.classes, strict=True) if of == subject.label]
    scores = [float(one.scores(model, subject, moved)["score"].mean()) for one in candidates]
    ranked = sorted(range(len(candidates)), key=lambda place: subject.sign * scores[place])
    taken = next(
        (p for p in ranked if _stays_text(dev, subject, candidates[p], max_new_tokens)), None
    )
    place = ranked[0] if taken is None else taken
    (kl,) = mean_kl(dev, [candidates[place]])
    return Chosen(candidates[place], taken is not None, scores[place], kl, note)


def _stays_text(dev: Answered, subject: Subject, candidate: Candidate, max_new_tokens: int) -> bool:
    prompts = candidate.prompts(dev.prompts)
    with candidate.inside():
        answers = ss_lens.generate(
            dev.model, prompts, max_new_tokens=max_new_tokens, chat=candidate.chat
        )
    return float(subject.texts(dev.prompts, answers)["collapsed"].mean()) <= MOST_COLLAPSED
