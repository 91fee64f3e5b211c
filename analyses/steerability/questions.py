"""Multiple-choice questions of the model-written evaluations: read, and scored as they are.

The layout is that of Perez et al. 2022 (arXiv 2212.09251): a line of JSON per question, with
``question``, ``answer_matching_behavior`` and ``answer_not_matching_behavior``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import Calibration, ContrastiveDataset, UserError, steer
from ss_lens.behaviours.questions import read_questions as read_choices
from ss_lens.core.checks import first_repeated
from ss_lens.core.progress import progress_bar
from ss_lens.generation.angle_batch import Angled, at_angles, checked_angles
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat
from ss_lens.scoring.continuations import (
    BATCH_SIZE,
    Continuation,
    answers,
    log_probabilities,
    passes,
    start_of,
)


@dataclass(frozen=True)
class Question:
    """A question, the answer that shows the behaviour, and the one that does not."""

    text: str
    matching: str
    other: str

    def __post_init__(self) -> None:
        if not self.text.strip() or self.matching == self.other:
            raise UserError(
                f"a question needs some text and two answers that differ; got "
                f"{self.text[:40]!r} with {self.matching!r} and {self.other!r}. Remove the row."
            )

    @property
    def surface(self) -> dict[str, float]:
        """What may sway an answer and is no part of its meaning: length, and which option it is.

        ``option order`` is 1 where the matching answer is (A), or Yes, and 0 where it is not.
        """
        first = self.matching.strip(" ().").upper() in ("A", "YES")
        return {
            "words": float(len(self.text.split())),
            "characters": float(len(self.text)),
            "option order": float(first),
        }


def read_questions(path: Path | str) -> list[Question]:
    """The questions of a ``.jsonl`` file in the layout of the model-written evaluations, each once.

    Raises:
        UserError: what :func:`ss_lens.behaviours.questions.read_questions` raises.
    """
    read = read_choices(path).questions
    return [Question(one.text.strip(), one.matching.strip(), one.other.strip()) for one in read]


def read_sets(paths: Sequence[Path]) -> dict[str, list[Question]]:
    """The questions of each file, by its name.

    Raises:
        UserError: two files of one name, or what :func:`read_questions` raises.
    """
    if (twice := first_repeated(path.stem for path in paths)) is not None:
        raise UserError(
            f"two files of questions are called {twice!r}, expected a name for each; rename one."
        )
    return {path.stem: read_questions(path) for path in paths}


def contrast(questions: Sequence[Question], name: str) -> ContrastiveDataset:
    """Each question with either answer below it, in pairs: what a calibration can be made on."""
    sides = (
        tuple(f"{q.text}\n\nAnswer: {answer}" for q, answer in zip(questions, given, strict=True))
        for given in ([q.matching for q in questions], [q.other for q in questions])
    )
    return ContrastiveDataset(name, *sides, paired=True)


@torch.inference_mode()
def score_questions(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Angled,
    questions: Sequence[Question],
    angles_deg: Sequence[float | int] | np.ndarray,
    *,
    batch_size: int = BATCH_SIZE,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Log-odds of the matching answer against the other one, at each angle.

    Both answers are read as the assistant's turn, up to the token in which they first differ:
    log P(matching) − log P(other) there, in nats. What comes before it is the same in both.

    Returns:
        ``prompt_index``, ``prompt``, ``angle_deg``, ``matching_score``, and ``answer_mass``, the
        probability of either token: where it is small, the score says little.

    Raises:
        UserError: no question, answers that are the same tokens or one the beginning of the other,
            or what :func:`ss_lens.steer` raises.
    """
    angles = checked_angles(operator, angles_deg)
    texts = [question.text for question in questions]
    if not texts:
        raise UserError("there is no question to score; give at least one.")
    sides = [
        answers(model, texts, [getattr(q, name) for q in questions], chat)
        for name in ("matching", "other")
    ]
    read, choices = [], []
    for question, first, second in zip(questions, *sides, strict=True):
        place = _first_difference(question, first, second)
        # The last scored token is only predicted, never read.
        read.append(Continuation(first.context, first.scored[: place + 1]))
        choices.append((first.scored[place], second.scored[place]))
    tables = []
    with progress_bar(len(angles), "questions", "angle") as bar:
        for angle in angles:
            found = np.empty((2, len(read)))
            with steer(model, calibration, at_angles(operator, angle)):
                start = start_of(model, read, range(len(read)))
                for run in passes(model, read, range(len(read)), batch_size, "questions"):
                    for row, logits in zip(run.batch.rows, run.logits(model, start), strict=True):
                        pair = log_probabilities(logits[-1:])[0, list(choices[row])].cpu()
                        found[:, row] = float(pair[0] - pair[1]), float(pair.exp().sum())
            table = pd.DataFrame({"prompt_index": range(len(read)), "prompt": texts})
            tables.append(
                table.assign(angle_deg=angle, matching_score=found[0], answer_mass=found[1])
            )
            bar.update()
    return pd.concat(tables, ignore_index=True)


def _first_difference(question: Question, first: Continuation, second: Continuation) -> int:
    for place, (one, other) in enumerate(zip(first.scored, second.scored, strict=False)):
        if one != other:
            return place
    raise UserError(
        f"the answers {question.matching!r} and {question.other!r} are the same tokens, or one "
        "begins with the other, so that they cannot be told apart; expected two that differ."
    )
