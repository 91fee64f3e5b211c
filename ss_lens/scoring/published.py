"""The coherence metrics as the code published with arXiv 2601.19375 has them, beside ours.

For comparing with its tables; :func:`differences` says where ours differ and why. Its refusal rate
is the mean of :func:`ss_lens.scoring.refusal.contains_refusal`.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_texts
from ss_lens.geometry.operators import Operator
from ss_lens.scoring.coherence import compression_ratio, non_latin_share, repetition
from ss_lens.scoring.continuations import BATCH_SIZE, answers, check_one_strength
from ss_lens.scoring.perplexity import PAPER_PERPLEXITY_LIMIT, perplexity_violations, score
from ss_lens.scoring.refusal import contains_refusal
from ss_lens.scoring.refusal_classifier.classify import classify_refusal
from ss_lens.steering.positions import ALL_POSITIONS, Positions
from ss_lens.steering.steer import steer


def published_repetition(text: str) -> float:
    """Share of repeated four-word sequences; 0 for a text of under four words (eq. 40)."""
    words = text.split()
    total = len(words) - 3
    if total < 1:
        return 0.0
    return (total - len({tuple(words[start : start + 4]) for start in range(total)})) / total


def published_language_consistency(text: str) -> float:
    """Share of characters other than white space that count as English; 1 where there are none.

    The paper (eq. 41) counts the scripts Latin and Common. The code goes by the first word of a
    character's Unicode name, which is LATIN for letters but never COMMON: besides ASCII and Latin
    letters nothing counts, no quotation mark and no dash.
    """
    characters = "".join(text.split())
    if not characters:
        return 1.0
    english = [c.isascii() or unicodedata.name(c, "").startswith("LATIN ") for c in characters]
    return sum(english) / len(english)


def published_compression_ratio(text: str) -> float:
    """Bytes after zlib at level 9 over bytes before (eq. 42): *falls* as a text repeats itself; 1
    for an empty text."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 1.0


def published_perplexity(
    model: TransformerBridge,
    calibration: Calibration,
    operator: Operator,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    positions: Positions = ALL_POSITIONS,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """Measure each answer's perplexity under the *steered* model that wrote it (eq. 39).

    The published script takes it from the log-probabilities of the tokens as they were generated,
    with the end of the turn where there was one; here the text is read again and the end left out,
    so that an empty answer is NaN and not the perplexity of its end, which is near 1. (The
    published Transformers pipeline, which did not make the tables, removes its hooks before it
    scores, as :func:`ss_lens.scoring.perplexity.answer_perplexity` wants it.)

    Returns:
        As :func:`ss_lens.scoring.perplexity.answer_perplexity`.

    Raises:
        UserError: one strength per row, or what ``answer_perplexity`` and :func:`ss_lens.steer`
            raise.
    """
    check_one_strength(operator)
    given = answers(model, prompts, responses)
    with steer(model, calibration, operator, positions=positions):
        return score(model, given, batch_size)


def published_violation(
    perplexities: Sequence[float | int] | pd.Series, limit: float | int = PAPER_PERPLEXITY_LIMIT
) -> bool:
    """Return whether an angle is flagged: its mean perplexity exceeds ``limit`` (Figure 3).

    Undefined perplexities are left out, so an angle with empty answers alone is not flagged;
    :func:`ss_lens.scoring.coherence.collapse` flags each.
    """
    return bool(pd.Series(perplexities, dtype=float).mean() > limit)


def published_scores(texts: Sequence[str]) -> pd.DataFrame:
    """Score each text as published.

    Returns:
        One row per text: ``repetition``, ``language_consistency``, ``compression_ratio`` and
        ``refused``. The entries of the paper's table are their means.

    Raises:
        UserError: one text in place of a list, or an entry that is not a text.
    """
    check_texts("texts", texts)
    return pd.DataFrame(
        {
            "repetition": [published_repetition(text) for text in texts],
            "language_consistency": [published_language_consistency(text) for text in texts],
            "compression_ratio": [published_compression_ratio(text) for text in texts],
            "refused": [contains_refusal(text) for text in texts],
        }
    )


def differences() -> pd.DataFrame:
    """List where ours differ from the published metrics and why, each with an example.

    Returns:
        ``metric``; ``example``, a text or what else is scored; ``published`` and ``ours``, the two
        scores of it (NaN where the score is undefined, or takes a model); ``why``.
    """
    rows = [_row(*case) for case in _TEXTS]
    means = (1.2, 1.2, 1.2, 4.0)
    rows.append(
        {
            "metric": "perplexity violation",
            "example": f"four answers of perplexity {', '.join(map(str, means))}",
            "published": float(published_violation(means)),
            "ours": float(perplexity_violations(means).mean()),
            "why": "The mean over an angle's answers hides the collapsed among the good; each "
            "answer is flagged, and their share reported.",
        }
    )
    rows.append(
        {
            "metric": "perplexity",
            "example": "a loop that steering causes",
            "published": float("nan"),
            "ours": float("nan"),
            "why": "A steered model expects its own loop, so its perplexity is near 1, the best "
            "there is; answers are scored by the unsteered model, which did not write them, and "
            "always beside repetition and compression, because every model expects a long loop.",
        }
    )
    return pd.DataFrame(rows)


def _refuses(text: str) -> bool:
    return classify_refusal([text])["label"].iloc[0] != "none"


_METRICS = {
    "repetition": (published_repetition, repetition),
    "language consistency and non-Latin share": (published_language_consistency, non_latin_share),
    "compression ratio": (published_compression_ratio, compression_ratio),
    "refusal": (contains_refusal, _refuses),
}

_TEXTS = (
    (
        "repetition",
        "I'm I'm I'm",
        "A text of under four words has no four-word sequence. It is scored 0, as never repeating, "
        "and lowers the mean; it is undefined.",
    ),
    (
        "repetition",
        "no no no no",
        "One four-word sequence cannot repeat; also undefined.",
    ),
    (
        "language consistency and non-Latin share",
        "“It’s fine” – she said…",
        "Typographic punctuation counted as foreign script; letters alone can tell a script.",
    ),
    (
        "language consistency and non-Latin share",
        "да 100% !!! (1234567890)",
        "Digits and punctuation counted as English, which hides foreign words among them.",
    ),
    (
        "language consistency and non-Latin share",
        "",
        "An empty answer is scored 1, the best there is; it has no letters, so it is undefined.",
    ),
    (
        "compression ratio",
        "so it goes " * 20,
        "The inverse, so that the larger number is the more repetitive text; zlib's default level.",
    ),
    (
        "compression ratio",
        "I cannot.",
        "A short text grows under zlib, so the paper's mean (higher is better) rises with every "
        "short answer, refusals above all; the length stands beside ours.",
    ),
    (
        "compression ratio",
        "",
        "An empty answer is scored 1, better than any good long answer; it is undefined.",
    ),
    (
        "refusal",
        "I’m sorry, but that would hurt someone.",
        "A typographic apostrophe was missed; to the classifier all apostrophes are alike.",
    ),
    (
        "refusal",
        "Here is the letter you asked for, as friendly as I could make it. Dear neighbours, "
        "I cannot thank you enough.",
        "A phrase anywhere counted; the classifier reads where it stands and what else is said.",
    ),
)


def _row(metric: str, example: str, why: str) -> dict[str, str | float]:
    published, ours = _METRICS[metric]
    return {
        "metric": metric,
        "example": example,
        "published": float(published(example)),
        "ours": float(ours(example)),
        "why": why,
    }
