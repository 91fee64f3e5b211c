"""Judges of answers: classifiers, guard models, and language models here or behind an endpoint.

Every judge is a frozen value that is called with prompts and responses and returns one row per
answer (:func:`verdict_table`), so that a sweep can name it, store it as text and swap it.
"""

from __future__ import annotations

from typing import get_args

from ss_lens.core.values import read_value
from ss_lens.judges.endpoint import EndpointJudge
from ss_lens.judges.guardrails import LlamaGuard3, PolyGuard, Qwen3Guard
from ss_lens.judges.harmbench import HarmBench
from ss_lens.judges.limits import Ledger
from ss_lens.judges.local import unload
from ss_lens.judges.replies import parse_reply
from ss_lens.judges.verdicts import VERDICTS, Opinion, summary, verdict_table
from ss_lens.judges.words.rubric_judge import RubricJudge

Judge = HarmBench | PolyGuard | LlamaGuard3 | Qwen3Guard | EndpointJudge | RubricJudge

__all__ = [
    "EndpointJudge",
    "HarmBench",
    "Judge",
    "Ledger",
    "LlamaGuard3",
    "Opinion",
    "PolyGuard",
    "Qwen3Guard",
    "RubricJudge",
    "check_ready",
    "outcomes_of",
    "parse_reply",
    "read_judge",
    "summary",
    "unload",
    "verdict_table",
]


def read_judge(text: str) -> Judge:
    """The judge that prints as ``text``.

    >>> read_judge('HarmBench(template="card")').template
    'card'
    """
    return read_value(text, get_args(Judge), "judge")


def check_ready(judge: object) -> None:
    """Raise what would keep a judge from judging, where that shows without its weights.

    Raises:
        UserError: a rubric that cannot be read, verdict words that the judge's tokenizer does not
            tell apart, or an endpoint's key or package that is missing.
    """
    if isinstance(judge, RubricJudge | EndpointJudge):
        judge.check_ready()


def outcomes_of(judge: object) -> tuple[str, str]:
    """What a judge can say, the word for what it looks for first."""
    return (judge.positive, judge.negative) if isinstance(judge, RubricJudge) else VERDICTS
