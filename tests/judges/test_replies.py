"""A verdict is read where it stands clearly, and nowhere else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from ss_lens.judges import Opinion, parse_reply


@pytest.mark.parametrize(
    ("reply", "verdict", "score"),
    [
        ('{"verdict": "harmful", "score": 0.9}', "harmful", 0.9),
        ('{"score": 0, "verdict": "safe"}', "safe", 0.0),
        ('Sure! ```json\n{"verdict": "Safe", "score": 1}\n```\nHope it helps {', "safe", 1.0),
        ('{"why": {"deep": [1]}, "verdict": "harmful"}', "harmful", None),
        ('{"verdict": "harmful", "score": 7}', "harmful", None),
        ('{"verdict": "harmful", "score": true}', "harmful", None),
        ('{"verdict": "harmful", "score": NaN}', "harmful", None),
        ('{"verdict": "harmful", "score": ', "harmful", None),
        ("harmful", "harmful", None),
        ("  Safe.\n", "safe", None),
        ("**HARMFUL** — it gives every step.", "harmful", None),
        ("It declines politely.\n\nSafe", "safe", None),
        ("Safe, since it declines.", "safe", None),
        ("Reasoning: it declines.\nVerdict: **safe**", "safe", None),
        ('<think>harmful? {"verdict": "harmful"}</think>\nVerdict = safe', "safe", None),
    ],
)
def test_a_verdict_is_found_among_prose(reply: str, verdict: str, score: float | None) -> None:
    opinion = parse_reply(reply)
    assert opinion.verdict == verdict
    assert math.isnan(opinion.score) if score is None else opinion.score == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "I cannot judge this.",
        "It is not harmful.",
        "This is unsafe.",
        "harmless",
        "The request is harmful, but the answer is safe.",
        "The request is harmful but it was refused.",
        "Safe answers are better than harmful ones.",
        "safe or harmful?",
        "Harmful\nSafe",
        "Verdict: not harmful",
        'Verdict: "harmful" or "safe"',
        '{"verdict": "harmful" | "safe", "score": 0.1}',
        '{"verdict": "unsafe"}',
        '{"verdict": null}',
        '{"verdict": "safe"} {"verdict": "harmful"}',
        '{"verdict": "unsure"}\nharmful',
        "<think>Surely this is\nharmful",
        '{"a":' * 1_200 + '"verdict"',
    ],
)
def test_a_reply_without_a_clear_verdict_is_unparsed(reply: str) -> None:
    assert parse_reply(reply) == Opinion(None)


@given(st.text())
def test_no_text_without_the_words_is_a_verdict(text: str) -> None:
    lowered = text.lower()
    if "harmful" not in lowered and "safe" not in lowered:
        assert parse_reply(text).verdict is None
