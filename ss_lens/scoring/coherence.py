"""Is the text still text? Repetition, compression and foreign script, per answer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pandas as pd
import regex

_FOREIGN_LETTER = regex.compile(r"[\p{L}--\p{Latin}--\p{Common}--\p{Inherited}]", regex.V1)
_LETTER = regex.compile(r"\p{L}")


def compression_ratio(text: str) -> float:
    """Bytes of the UTF-8 text over bytes after zlib; grows as a text repeats itself.

    It also grows with length, so compare texts of like length. NaN for an empty text.
    """
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else float("nan")


def repetition(text: str, n: int = 4) -> float:
    """Share of word ``n``-grams that occurred before in the same text.

    NaN where there are not at least two ``n``-grams: a short answer is undefined, not unrepeating.

    >>> repetition("so it goes so it goes so it goes so it goes")
    0.6666666666666667
    """
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) >= 2 else float("nan")


def non_latin_share(text: str) -> float:
    """Share of letters outside the Latin script; NaN for a text without letters.

    Letters only: quotation marks, dashes and emoji belong to every script.

    >>> non_latin_share("“naïve” — да")
    0.2857142857142857
    """
    letters = len(_LETTER.findall(text))
    return len(_FOREIGN_LETTER.findall(text)) / letters if letters else float("nan")


def coherence(texts: Sequence[str]) -> pd.DataFrame:
    """One row per text: ``compression_ratio``, ``repetition``, ``non_latin_share``, ``n_words``."""
    return pd.DataFrame(
        {
            "compression_ratio": [compression_ratio(text) for text in texts],
            "repetition": [repetition(text) for text in texts],
            "non_latin_share": [non_latin_share(text) for text in texts],
            "n_words": [len(text.split()) for text in texts],
        }
    )
