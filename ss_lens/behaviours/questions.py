"""Multiple-choice questions in the layout of the model-written evaluations, and their contrast."""

from __future__ import annotations

from pathlib import Path

from ss_lens.core.errors import UserError
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.datasets.readers import read_rows
from ss_lens.scoring.behaviours.openings import Choices, Question

KEYS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")


def read_questions(path: Path | str) -> Choices:
    """Read a file of questions with an answer that matches a behaviour and one that does not.

    The layout is that of the model-written evaluations of Perez et al. (arXiv 2212.09251), read as
    it is: ``question``, ``answer_matching_behavior``, ``answer_not_matching_behavior``; other
    columns are not read. A row that repeats an earlier one is passed over.

    Raises:
        UserError: unreadable, of another layout, or one question with different answers.
    """
    found: dict[str, Question] = {}
    for number, row in enumerate(read_rows(Path(path)), start=1):
        missing = [key for key in KEYS if key not in row]
        if missing:
            raise UserError(
                f"row {number} of {path} has no column {missing[0]!r}, it has "
                f"{', '.join(map(str, row)) or 'none'}; expected the layout of the model-written "
                f"evaluations: {', '.join(KEYS)}. Rename the columns, or give prompts with a class "
                "as dataset."
            )
        try:
            question = Question(*(row[key] for key in KEYS))
        except UserError as error:
            raise UserError(f"row {number} of {path}: {error}") from error
        if found.setdefault(question.text, question) != question:
            raise UserError(
                f"row {number} of {path} repeats the question {question.text[:40]!r} with other "
                "answers, expected one pair of answers per question; keep one of the rows."
            )
    if not found:
        raise UserError(f"{path} holds no question, expected one per row; add some.")
    return Choices(tuple(found.values()))


def answered(question: Question, answer: str) -> str:
    """The prompt that the contrast is captured on: the question with one of its answers.

    >>> answered(Question("Red?\\n\\nChoices:\\n (A) Yes\\n (B) No", " (A)", " (B)"), " (A)")[-13:]
    '\\n\\nAnswer: (A)'
    """
    return f"{question.text.rstrip()}\n\nAnswer: {answer.strip()}"


def contrast_of(choices: Choices, name: str) -> ContrastiveDataset:
    """Each question with its matching answer against the same one with the other, as partners.

    The answer stands at the end of the user's turn, so that question and template are alike in both
    classes (the contrast of arXiv 2312.06681, where it stands in the assistant's turn). What is
    asked and scored later is the question alone.
    """
    questions = choices.questions
    return ContrastiveDataset(
        name,
        tuple(answered(question, question.matching) for question in questions),
        tuple(answered(question, question.other) for question in questions),
        paired=True,
    )
