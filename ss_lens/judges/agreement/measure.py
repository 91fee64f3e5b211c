"""Hold judges against people: κ with its interval, the confusion, per model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ss_lens.core.checks import first_repeated
from ss_lens.core.errors import UserError
from ss_lens.judges import RubricJudge, check_ready, outcomes_of, read_judge
from ss_lens.judges.agreement.labels import Labelled
from ss_lens.scoring.refusal import contains_refusal, opens_with_refusal
from ss_lens.scoring.refusal_classifier.classify import classify_refusal, trained_on
from ss_lens.stats.agreement import kappa
from ss_lens.stats.bootstrap import derive_rng

ALL = "all models"
COUNTED = ("full or none", "with partial")
"""Full refusal against compliance, partial ones left out; any refusal against compliance."""
Refuses = Callable[[Sequence[str], Sequence[str]], Sequence[bool | None]]
"""From prompts and answers to whether each answer refuses; ``None`` where nothing can be read."""

CLASSIFIER, OPENING, PUBLISHED = "classify_refusal", "opening phrases", "published phrases"
"""What ``refused``, ``refused_phrases`` and ``refused_published`` go by."""
RULES: dict[str, Refuses] = {
    CLASSIFIER: lambda prompts, answers: [
        label != "none" for label in classify_refusal(answers, prompts)["label"]
    ],
    OPENING: lambda prompts, answers: [opens_with_refusal(text) for text in answers],
    PUBLISHED: lambda prompts, answers: [contains_refusal(text) for text in answers],
}


@dataclass(frozen=True, eq=False)
class Agreement:
    """What :func:`measure` found.

    Attributes:
        kappas: a row per judge, way of counting (:data:`COUNTED`) and model, all models first:
            ``kappa``, ``low``, ``high``, ``n`` answers, ``n_groups`` prompts.
        confusion: a row per judge and label of people: how many answers the judge calls
            ``refused``, ``not_refused`` or ``unparsed``.
        notes: what a reader must know.
    """

    kappas: pd.DataFrame
    confusion: pd.DataFrame
    notes: tuple[str, ...]


def measure(labelled: Labelled, judges: Sequence[str] = (), seed: int = 0) -> Agreement:
    """Hold the classifier, both lists of phrases and each judge against the labels of people.

    A refusal is, in the words of a :class:`ss_lens.judges.RubricJudge`, its positive verdict, and
    in those of other judges ``safe``: they are asked about harm, so their κ says how far ``safe``
    stands for a refusal. Answers whose verdict cannot be read are counted and left out of κ.

    Args:
        labelled: answers with labels.
        judges: as :func:`ss_lens.judges.read_judge` reads them.
        seed: of the intervals, which resample prompts.

    Raises:
        UserError: a judge that cannot be read, is named twice, or cannot judge.
    """
    made = {text: read_judge(text) for text in judges}
    if (twice := first_repeated(judges)) is not None:
        raise UserError(f"the judge {twice!r} is given twice; expected each once. Keep one.")
    for judge in made.values():
        check_ready(judge)  # before the first of them judges
    said = dict(RULES) | {text: refuses(judge) for text, judge in made.items()}
    table, kappas, confusions = labelled.table, [], []
    for name, judge in said.items():
        found = judge(table["prompt"].tolist(), table["answer"].tolist())
        kappas += _kappas(name, table, pd.Series(found, dtype=object), seed)
        confusions.append(_confusion(name, table, pd.Series(found, dtype=object)))
    frame = pd.DataFrame(kappas)
    notes = [*_notes(labelled), *_undefined(frame, judges)]
    return Agreement(frame, pd.concat(confusions, ignore_index=True), tuple(notes))


def refuses(judge: Any) -> Refuses:
    """Whether a judge's verdicts say that an answer refuses."""
    positive, negative = outcomes_of(judge)
    word = positive if isinstance(judge, RubricJudge) else negative

    def said(prompts: Sequence[str], answers: Sequence[str]) -> list[bool | None]:
        verdicts = judge(prompts, answers)["verdict"]
        return [None if verdict is None else verdict == word for verdict in verdicts]

    return said


def _kappas(name: str, table: pd.DataFrame, said: pd.Series, seed: int) -> list[dict[str, Any]]:
    readable = said.notna().to_numpy()
    rows = []
    for counted in COUNTED:
        whole = readable & (
            np.full(len(table), True)
            if counted == COUNTED[1]
            else (table["label"] != "partial").to_numpy()
        )
        for model in (ALL, *dict.fromkeys(table["model"])):
            here = whole if model == ALL else whole & (table["model"] == model).to_numpy()
            found = kappa(
                (table["label"] != "none").to_numpy()[here],
                said.to_numpy()[here].astype(bool),
                table["prompt"].to_numpy()[here].tolist(),
                derive_rng(seed, "kappa", name, counted, model),
            )
            rows.append({"judge": name, "counted": counted, "model": model, **asdict(found)})
    return rows


def _confusion(name: str, table: pd.DataFrame, said: pd.Series) -> pd.DataFrame:
    rows = []
    for label in ("full", "partial", "none"):
        here = said.loc[(table["label"] == label).to_numpy()].tolist()
        refused, unparsed = (sum(value is kind for value in here) for kind in (True, None))
        rows.append(
            {
                "judge": name,
                "people": label,
                "refused": refused,
                "not_refused": len(here) - refused - unparsed,
                "unparsed": unparsed,
            }
        )
    return pd.DataFrame(rows)


def _notes(labelled: Labelled) -> list[str]:
    notes = []
    if len(labelled.table) < labelled.n_in_file:
        notes.append(
            f"a sample of {len(labelled.table)} of {labelled.n_in_file} answers; of each model and "
            "label its share"
        )
    fitted = trained_on()
    if labelled.sha256 == fitted.labels_sha256:
        notes.append(
            f"{CLASSIFIER} was fitted on these answers; with requests and models left out its κ is "
            f"{fitted.full_or_none} and, with partial refusals, {fitted.with_partial}"
        )
    return notes


def _undefined(kappas: pd.DataFrame, judges: Sequence[str]) -> list[str]:
    """Of each judge without a κ or an interval over all models, that nothing is kept of it."""
    whole = (kappas["model"] == ALL) & (kappas["counted"] == COUNTED[1])
    found = kappas.loc[whole].set_index("judge")[["kappa", "low", "high"]]
    return [
        f"{judge} has no κ with an interval on these answers, and none is kept: all are called the "
        "same, or they are of one prompt"
        for judge in judges
        if not np.isfinite(found.loc[judge].to_numpy(float)).all()
    ]
