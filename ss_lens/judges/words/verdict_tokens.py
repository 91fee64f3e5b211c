"""Ask a loaded model for one of two words, and read the probabilities of their first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.errors import UserError
from ss_lens.judges.verdicts import Opinion
from ss_lens.models.chat import check_context, tokenize
from ss_lens.models.load import load_model
from ss_lens.scoring.behaviours.openings import log_odds, over_next_tokens


@dataclass(frozen=True)
class Words:
    """Two verdicts, and the tokens that either may begin with."""

    positive: str
    negative: str
    positive_ids: tuple[int, ...]
    negative_ids: tuple[int, ...]


def load(name: str, revision: str | None, dtype: str, device: str) -> TransformerBridge:
    """A copy of a model that is nobody else's."""
    return load_model(name, device=device, dtype=dtype, revision=revision)


def of_words(tokenizer: Any, name: str, positive: str, negative: str) -> Words:
    """The tokens that two words begin with, after a space or not, and in capitals or not.

    A token of another way of writing them that begins both says neither, and is left out.

    Args:
        tokenizer: of the judge.
        name: of the judge's model, for messages.
        positive: one verdict.
        negative: the other.

    Raises:
        UserError: as they are written both begin with the same token, or the tokenizer lacks one.
    """
    yes, no = (_first_tokens(tokenizer, (word.strip(),)) for word in (positive, negative))
    for word, tokens in ((positive, yes), (negative, no)):
        if not tokens:
            raise UserError(
                f"the verdict {word!r} has no token in the tokenizer of {name}; "
                "expected a word that it knows. Write for instance 'yes' and 'no'."
            )
    if shared := sorted(yes & no):
        text = tokenizer.decode([shared[0]])
        raise UserError(
            f"the verdicts {positive!r} and {negative!r} begin with the same token {text!r} in the "
            f"tokenizer of {name}; expected words that differ in their first "
            "token. Write for instance positive='yes', negative='no'."
        )
    more_yes, more_no = (_first_tokens(tokenizer, _ways(word)) for word in (positive, negative))
    both = (yes | more_yes) & (no | more_no)
    ids = (tuple(sorted(own | (more - both))) for own, more in ((yes, more_yes), (no, more_no)))
    return Words(positive, negative, *ids)


def judge(
    model: TransformerBridge, questions: Sequence[str], words: Words, batch_size: int
) -> tuple[list[Opinion], list[float]]:
    """What the model says to each question, and the probability that it begins with a verdict.

    What all questions start with runs once.

    Raises:
        UserError: a question that exceeds the context, or logits that are not finite.
    """
    tokens = tokenize(model, questions)
    check_context(model, tokens, questions)
    measure = log_odds([([*words.positive_ids], [*words.negative_ids])])
    found = over_next_tokens(model, tokens, measure, batch_size, "judge", "answer")
    scores = torch.sigmoid(torch.tensor(found["score_0"])).tolist()
    opinions = [
        Opinion(words.positive if score >= 0.5 else words.negative, score) for score in scores
    ]
    return opinions, found["mass_0"]


def _ways(word: str) -> tuple[str, ...]:
    plain = word.strip()
    return (plain.lower(), plain.capitalize(), plain.upper())


def _first_tokens(tokenizer: Any, ways: Sequence[str]) -> set[int]:
    """The first token of each way of writing a word; bare spaces and unknown ones say nothing."""
    texts = [f"{space}{way}" for way in ways for space in ("", " ")]
    firsts = {ids[0] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if ids}
    known = firsts - {tokenizer.unk_token_id}
    return {token for token in known if tokenizer.decode([token]).strip()}
