"""What every judge returns: one verdict per answer, and rates that count the unparsed apart."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ss_lens.core.errors import UserError
from ss_lens.stats.intervals import wilson_interval

Verdict = Literal["harmful", "safe"]
VERDICTS: tuple[Verdict, Verdict] = ("harmful", "safe")


@dataclass(frozen=True)
class Opinion:
    """What a judge said of one answer.

    Attributes:
        verdict: ``harmful`` or ``safe``, or a word of a judge's own; ``None`` where what the judge
            said could not be parsed.
        score: how harmful, from 0 to 1; NaN where the judge gives none or was not parsed.
    """

    verdict: str | None
    score: float = math.nan

    def __post_init__(self) -> None:
        assert self.verdict is not None or math.isnan(self.score)


UNPARSED = Opinion(None)
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_pairs(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Raise a :class:`UserError` unless there is one text in ``responses`` per one in ``prompts``.

    The message names the place of a wrong item, never its text.
    """
    for name, texts in (("prompts", prompts), ("responses", responses)):
        if isinstance(texts, str):
            raise UserError(f"{name} must be a list of texts; got one text. Put it in a list.")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(
                    f"{name}[{index}] is of type {type(text).__name__}; expected text. An answer "
                    "that was not given is an empty text."
                )
            if _SURROGATE.search(text):
                raise UserError(
                    f"{name}[{index}] holds half a character (a lone surrogate), which no model "
                    "reads; decode the file that it comes from as UTF-8."
                )
    if len(prompts) != len(responses):
        raise UserError(
            f"a judge needs one response per prompt; got {len(prompts)} prompts and "
            f"{len(responses)} responses."
        )


def verdict_table(opinions: Sequence[Opinion]) -> pd.DataFrame:
    """One row per answer: ``verdict`` (a text, or ``None``), ``score`` and ``parse_ok``.

    ``parse_ok`` is false exactly where ``verdict`` is ``None``.
    """
    verdicts = [opinion.verdict for opinion in opinions]
    return pd.DataFrame(
        {
            # Of type object, since a text column would turn None into NaN.
            "verdict": pd.Series(verdicts, dtype=object),
            "score": pd.Series([opinion.score for opinion in opinions], dtype=float),
            "parse_ok": pd.Series([verdict is not None for verdict in verdicts], dtype=bool),
        }
    )


def summary(
    verdicts: pd.DataFrame, confidence: float = 0.95, outcomes: tuple[str, ...] = VERDICTS
) -> pd.DataFrame:
    """Rates of a table of verdicts, with Wilson intervals.

    Args:
        verdicts: what a judge returned.
        confidence: of the intervals.
        outcomes: what the judge can say (:func:`ss_lens.judges.outcomes_of`).

    Returns:
        A row per outcome, by default ``harmful`` and ``safe``, and one ``unparsed``, with
        ``count``, ``n``, ``rate``, ``low`` and ``high``. Outcomes are rates among the ``n`` parsed
        verdicts, unparsed ones among all answers: an unparsed verdict is neither harmful nor safe.
        Rates of nothing are NaN.

    Raises:
        UserError: the table is not one of verdicts.
    """
    _check_table(verdicts, outcomes)
    parsed = verdicts["verdict"].dropna()
    counts = {verdict: int((parsed == verdict).sum()) for verdict in outcomes}
    rows = [(verdict, count, len(parsed)) for verdict, count in counts.items()]
    rows.append(("unparsed", len(verdicts) - len(parsed), len(verdicts)))
    return pd.DataFrame(
        [(*row, *_rate(row[1], row[2], confidence)) for row in rows],
        columns=["outcome", "count", "n", "rate", "low", "high"],
    )


def _rate(count: int, n: int, confidence: float) -> tuple[float, float, float]:
    if n == 0:
        return math.nan, math.nan, math.nan
    return count / n, *wilson_interval(count, n, confidence)


def _check_table(verdicts: pd.DataFrame, outcomes: Sequence[str]) -> None:
    missing = {"verdict", "parse_ok"} - set(verdicts.columns)
    if missing:
        raise UserError(
            f"a table of verdicts needs the column {min(missing)!r}; got "
            f"{', '.join(map(str, verdicts.columns)) or 'no columns'}. Pass what a judge returned."
        )
    known = verdicts["verdict"].isin(outcomes)
    if not (known | verdicts["verdict"].isna()).all():
        place = int((known | verdicts["verdict"].isna()).to_numpy().argmin())
        raise UserError(f"verdict {place} is neither {', '.join(outcomes)} nor empty.")
    if (known != verdicts["parse_ok"].astype(bool)).any():
        raise UserError(
            "verdict and parse_ok contradict each other; an unparsed verdict is empty and has "
            "parse_ok false."
        )
