"""Coherence of each answer: repetition, compression, foreign script, and collapse."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import regex

from ss_lens.core.checks import check_at_least, check_positive, check_share, check_texts
from ss_lens.core.errors import UserError
from ss_lens.scoring.registry import Column, Score

_LETTER = regex.compile(r"[\p{L}--\p{Common}--\p{Inherited}]", regex.V1)
_FOREIGN_LETTER = regex.compile(r"[\p{L}--\p{Latin}--\p{Common}--\p{Inherited}]", regex.V1)


def compression_ratio(text: str) -> float:
    """Return the bytes of the UTF-8 text over those after zlib; grows as a text repeats itself.

    It also grows with length, so compare texts of similar length. NaN for an empty text.
    """
    raw = _utf8(text)
    return len(raw) / len(zlib.compress(raw)) if raw else float("nan")


def _utf8(text: str) -> bytes:
    """A lone surrogate, which some files hold, counts as the three bytes it would be."""
    return text.encode("utf-8", "surrogatepass")


def repetition(text: str, n: int = 4) -> float:
    """Return the share of word ``n``-grams that occurred before in the same text.

    NaN where there are not at least two ``n``-grams: a short answer is undefined, not unrepeating.

    >>> repetition("so it goes so it goes so it goes so it goes")
    0.6666666666666667
    """
    check_at_least("n", n)
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) >= 2 else float("nan")


def non_latin_share(text: str) -> float:
    """Return the share of letters outside the Latin script; NaN for a text without letters.

    Letters of one script only: quotation marks, dashes and emoji belong to all, and so do a few
    letters (ー, µ, 𝐛).

    >>> non_latin_share("“naïve” — да")
    0.2857142857142857
    """
    letters = len(_LETTER.findall(text))
    return len(_FOREIGN_LETTER.findall(text)) / letters if letters else float("nan")


SHORTEST_UNSPACED_LOOP = 20
"""Characters below which a loop without word boundaries may be emphasis: ``no!!!``, ``哈哈哈``."""


def is_loop(text: str) -> bool:
    """Return whether the text is nothing but one unit three times or more, the last perhaps cut.

    The unit is a phrase, or, from 20 characters of text on, any run of characters, so that loops
    of scripts without spaces count. :func:`repetition` sees neither loops of a few words nor those
    without spaces.

    >>> is_loop("I'm I'm I'm"), is_loop("as it was as it was as it w"), is_loop("no, no and no")
    (True, True, False)
    >>> is_loop("哈" * 20), is_loop("hahaha" * 4), is_loop("哈哈哈")
    (True, True, False)
    """
    words = text.split()
    if _repeats_words(words):
        return True
    characters = " ".join(words)
    return len(characters) >= SHORTEST_UNSPACED_LOOP and _repeats_characters(characters)


def _repeats_words(words: Sequence[str]) -> bool:
    last = len(words) - 1

    def repeats(period: int) -> bool:
        return words[last - period].startswith(words[last]) and all(
            words[i] == words[i - period] for i in range(period, last)
        )

    return any(repeats(period) for period in range(1, len(words) // 3 + 1))


def _repeats_characters(text: str) -> bool:
    """A text has period ``p`` where it repeats itself after ``p`` characters."""
    return any(text.startswith(text[period:]) for period in range(1, len(text) // 3 + 1))


def coherence(texts: Sequence[str]) -> pd.DataFrame:
    """Score each text by itself.

    Returns:
        One row per text: ``compression_ratio``, ``repetition``, ``non_latin_share``, and the
        lengths ``n_words`` and ``n_bytes`` (of the UTF-8 text, beside which the compression ratio
        is to be read).

    Raises:
        UserError: one text in place of a list, or an entry that is not a text.
    """
    check_texts("texts", texts)
    return pd.DataFrame(
        {
            "compression_ratio": [compression_ratio(text) for text in texts],
            "repetition": [repetition(text) for text in texts],
            "non_latin_share": [non_latin_share(text) for text in texts],
            "n_words": [len(text.split()) for text in texts],
            "n_bytes": [len(_utf8(text)) for text in texts],
        }
    )


@dataclass(frozen=True, kw_only=True)
class CollapseRule:
    """An answer has collapsed when it is empty, a loop, or one of its scores exceeds its limit.

    Choose each limit, for instance from scores of the unsteered model's answers: what good answers
    score depends on the model that scores, on their length and on the language. ``None``
    leaves a score out. The literature gives one number, a perplexity
    (:data:`ss_lens.scoring.perplexity.PAPER_PERPLEXITY_LIMIT`), and for another quantity.

    No single score will do. A loop repeats and compresses but is likely under any model; a mash of
    scripts neither repeats nor compresses; an empty answer has no score at all.

    Raises:
        UserError: a perplexity below 1, a ratio that is not positive, a share outside of 0 to 1.
    """

    max_perplexity: float | int | None
    max_compression_ratio: float | int | None
    max_repetition: float | int | None
    max_non_latin_share: float | int | None

    def __post_init__(self) -> None:
        if self.max_perplexity is not None:
            check_positive("max_perplexity", self.max_perplexity)
            if self.max_perplexity < 1:
                raise UserError(f"max_perplexity must be at least 1; got {self.max_perplexity}.")
        if self.max_compression_ratio is not None:
            check_positive("max_compression_ratio", self.max_compression_ratio)
        for name in ("max_repetition", "max_non_latin_share"):
            share = getattr(self, name)
            if share is not None:
                check_share(name, share)

    @property
    def limits(self) -> dict[str, float | int]:
        """The limit of each score that has one, by its column."""
        return {
            column: limit
            for column in _SCORES
            if (limit := getattr(self, f"max_{column}")) is not None
        }


_SCORES = ("perplexity", "compression_ratio", "repetition", "non_latin_share")
_FLAGS = ("empty", "loop")


def collapse(scores: pd.DataFrame, rule: CollapseRule) -> pd.DataFrame:
    """Return which answers have collapsed, and why.

    Args:
        scores: one row per answer with ``empty``, ``loop`` and every score that ``rule`` limits.
        rule: the limits.

    Returns:
        ``collapsed``; ``reasons``: ``empty``, ``loop`` and the scores beyond their limit with both
        numbers; and ``undefined``, the limited scores that the answer is too short for, which
        therefore do not count against it.

    Raises:
        UserError: a score is missing.
    """
    missing = [name for name in (*_FLAGS, *rule.limits) if name not in scores]
    if missing:
        raise UserError(
            f"the scores have no column {', '.join(missing)}; take them from coherence_table, or "
            "set the limit to None."
        )
    reasons, undefined = [], []
    for row in scores.to_dict("records"):
        found = {name: row[name] for name in rule.limits}
        beyond = [
            f"{name} {value:.3g} > {rule.limits[name]:g}"
            for name, value in found.items()
            if value > rule.limits[name]
        ]
        flagged = [name for name in _FLAGS if row[name]]
        reasons.append("; ".join(flagged + beyond))
        undefined.append(", ".join(name for name, value in found.items() if pd.isna(value)))
    columns = {"collapsed": [bool(r) for r in reasons], "reasons": reasons, "undefined": undefined}
    return pd.DataFrame(columns, index=scores.index)


def coherence_table(
    responses: Sequence[str], perplexity: pd.DataFrame, rule: CollapseRule
) -> pd.DataFrame:
    """Collect all coherence scores of each answer and the verdict of ``rule``.

    Args:
        responses: the answers.
        perplexity: of these answers, from :func:`ss_lens.scoring.perplexity.answer_perplexity`.
        rule: when an answer counts as collapsed.

    Returns:
        One row per answer: the columns of ``perplexity``, those of :func:`coherence`, ``empty``
        (nothing but white space), ``loop`` (:func:`is_loop`), and those of :func:`collapse`.

    Raises:
        UserError: not as many perplexities as answers.
    """
    if len(perplexity) != len(responses):
        raise UserError(
            f"got {len(responses)} responses and {len(perplexity)} rows of perplexity; give the "
            "table that answer_perplexity returned for these responses."
        )
    scores = pd.concat([perplexity.reset_index(drop=True), _with_flags(responses)], axis=1)
    return pd.concat([scores, collapse(scores, rule)], axis=1)


def _with_flags(texts: Sequence[str]) -> pd.DataFrame:
    """The columns of :func:`coherence`, and the flags that :func:`collapse` reads."""
    flags = {
        "empty": [not text.strip() for text in texts],
        "loop": [is_loop(text) for text in texts],
    }
    return pd.concat([coherence(texts), pd.DataFrame(flags, dtype=bool)], axis=1)


SCORE = Score(
    name="coherence",
    columns=(
        Column("compression_ratio", "compression", better="lower", undefined=True),
        Column("repetition", "repetition", better="lower", undefined=True),
        Column("non_latin_share", undefined=True),
        Column("n_words"),
        Column("n_bytes"),
        Column("empty", kind="rate"),
        Column("loop", kind="rate"),
    ),
    needs="texts",
    measure=_with_flags,
    place=20,
)
