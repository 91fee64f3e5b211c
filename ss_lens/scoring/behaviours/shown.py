"""Whether an answer shows a behaviour: a pattern, phrases, a function or a judge on its text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from ss_lens.core.errors import UserError
from ss_lens.scoring.registry import Column, Score, ScoreInput

Shows = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""From prompts and answers to a number per answer, above 0 where the behaviour shows."""


def shown_table(shows: Shows, prompts: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
    """``shown``, whether the number of an answer is above 0, and ``text_score``, that number.

    Both are missing where the scorer has no value for an answer.

    Raises:
        UserError: not one finite number per answer, or none for any of them.
    """
    table = shown_of_some(shows, prompts, answers)
    check_some(table["text_score"], "answers")
    return table


def check_some(values: pd.Series, what: str) -> None:
    """Raise where there are values and all are NaN.

    Args:
        values: what the scorer gave.
        what: the answers that they are of.
    """
    if len(values) and values.isna().all():
        raise UserError(
            f"the score of the behaviour is NaN for all {len(values)} {what}, expected a number "
            "for some; mend the scorer, or ask prompts whose answers it can score."
        )


def shown_of_some(shows: Shows, prompts: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
    """The same of answers so few that none of them need have a value.

    Raises:
        UserError: not one finite number per answer.
    """
    values = [float(value) for value in shows(prompts, answers)]
    if len(values) != len(answers):
        raise UserError(
            f"the scorer of the behaviour gave {len(values)} values for {len(answers)} answers, "
            "expected one per answer; mend it."
        )
    if any(map(math.isinf, values)):
        raise UserError(
            "the scorer of the behaviour gave an infinite value, expected finite numbers, or NaN "
            "where an answer has none; mend it."
        )
    shown = pd.Series([math.nan if math.isnan(v) else float(v > 0) for v in values], dtype=float)
    return pd.DataFrame({"shown": shown, "text_score": pd.Series(values, dtype=float)})


def _measured(given: ScoreInput) -> pd.DataFrame:
    if given.shows is None:
        raise UserError(
            "behaviour_shown got nothing that reads answers, expected phrases, a pattern, a "
            "function or a judge of a behaviour; name one with behaviour: FILE.yaml, or leave the "
            "score out."
        )
    answers = given.answers
    return shown_table(given.shows, answers["prompt"].tolist(), answers["response"].tolist())


SCORE = Score(
    name="behaviour_shown",
    columns=(
        Column("shown", "shown", kind="rate", undefined=True),
        Column("text_score", undefined=True),
    ),
    needs="answers",
    measure=_measured,
    place=11,
    on_request=True,
)
