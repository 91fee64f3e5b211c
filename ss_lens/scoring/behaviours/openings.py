"""How answers begin: texts that their first token tells apart, and the log-odds between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.checks import check_at_least, check_is, check_texts, first_repeated
from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.generation.angle_batch import BATCH_ROWS
from ss_lens.generation.loop import check_logits
from ss_lens.generation.shared_start import SharedStart
from ss_lens.models import forward
from ss_lens.models.chat import (
    DEFAULT_FORMAT,
    ChatFormat,
    Prompt,
    Tokens,
    check_context,
    tokenize,
)
from ss_lens.models.loading.devices import device_of
from ss_lens.scoring.registry import Comparison

TokenSets = tuple[list[int], list[int]]
"""The first tokens of either side, without those of both."""


@dataclass(frozen=True)
class Openings:
    """How answers begin that show a behaviour, and how those begin that do not.

    A token that opens both kinds in a tokenizer counts as neither.

    >>> Openings(("Bien sûr", "Voici"), ("Sure", "Here")).pairs
    ((('Bien sûr', 'Voici'), ('Sure', 'Here')),)

    Raises:
        UserError: a side without texts, or a blank one.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            check_texts(f"the {side} openings", getattr(self, side))
            texts = tuple(getattr(self, side))
            if not texts or not all(text.strip() for text in texts):
                raise UserError(
                    f"the {side} openings are {list(texts)!r:.60}, expected at least one text and "
                    "no blank one; write how an answer begins, such as 'Certainly'."
                )
            object.__setattr__(self, side, texts)

    @property
    def pairs(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """The pairs of sides that are compared: one."""
        return ((self.positive, self.negative),)

    def oriented(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Of each prompt, which of :attr:`pairs` it has and the sign of its score."""
        return np.zeros(len(prompts), dtype=int), np.ones(len(prompts))

    def as_json(self) -> dict[str, Any]:
        return {"positive": [*self.positive], "negative": [*self.negative]}


@dataclass(frozen=True)
class Question:
    """A multiple-choice question: the answer that matches a behaviour, and one that does not."""

    text: str
    matching: str
    other: str

    def __post_init__(self) -> None:
        for what, text in (
            ("the question", self.text),
            ("the answer that matches the behaviour", self.matching),
            ("the answer that does not match it", self.other),
        ):
            check_is(what, text, (str,), "a text")
            if not text.strip():
                raise UserError(
                    f"{what} is blank (of {self.text[:40]!r}), expected a text; fill it in or "
                    "leave the question out."
                )
        if self.matching.strip() == self.other.strip():
            raise UserError(
                f"both answers to the question {self.text[:40]!r} are {self.matching.strip()!r}, "
                "expected one that matches the behaviour and one that does not; mend it."
            )


@dataclass(frozen=True)
class Choices:
    """Questions whose answers are compared by how the model would begin: ``Yes``, ``(A)``, ``A``.

    Raises:
        UserError: no question, or one that occurs twice.
    """

    questions: tuple[Question, ...]

    def __post_init__(self) -> None:
        check_is("questions", self.questions, (Sequence,), "a list of Question(...)")
        for place, question in enumerate(self.questions):
            made = "Question(text=..., matching=..., other=...)"
            check_is(f"questions[{place}]", question, (Question,), made)
        object.__setattr__(self, "questions", tuple(self.questions))
        if not self.questions:
            raise UserError("the list of questions is empty, expected at least one; add questions.")
        if (twice := first_repeated(question.text for question in self.questions)) is not None:
            raise UserError(f"the question {twice[:60]!r} occurs twice; keep one.")

    @cached_property
    def _by_text(self) -> dict[str, Question]:
        return {question.text: question for question in self.questions}

    @property
    def pairs(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """The distinct pairs of answers, as the texts that each may begin with."""
        return tuple((_written(one), _written(other)) for one, other in self._distinct)

    @cached_property
    def _distinct(self) -> tuple[tuple[str, str], ...]:
        return tuple(dict.fromkeys(self._pair(question) for question in self.questions))

    @staticmethod
    def _pair(question: Question) -> tuple[str, str]:
        one, other = sorted((question.matching.strip(), question.other.strip()))
        return one, other

    def oriented(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Of each prompt, which of :attr:`pairs` it has and the sign of its score.

        Raises:
            UserError: a prompt that is none of the questions.
        """
        places, signs = [], []
        for prompt in prompts:
            if not isinstance(prompt, str) or prompt not in self._by_text:
                raise UserError(
                    f"the prompt {str(prompt)[:60]!r} is none of the {len(self.questions)} "
                    "questions, so it has no answers to compare; ask those of the behaviour."
                )
            question = self._by_text[prompt]
            pair = self._pair(question)
            places.append(self._distinct.index(pair))
            signs.append(1.0 if question.matching.strip() == pair[0] else -1.0)
        return np.array(places, dtype=int), np.array(signs)

    def as_json(self) -> dict[str, Any]:
        return {"questions": [[q.text, q.matching, q.other] for q in self.questions]}


def _written(answer: str) -> tuple[str, ...]:
    """How an answer may be begun: with a space before it or without, a letter without brackets."""
    bare = answer[1:-1] if len(answer) == 3 and answer[0] + answer[2] == "()" else answer
    texts = [answer, bare, *({bare.lower(), bare.upper()} if len(bare) > 1 else ())]
    return tuple(dict.fromkeys(f"{space}{text}" for text in texts for space in ("", " ")))


def first_tokens(
    model: TransformerBridge,
    pair: tuple[Sequence[str], Sequence[str]],
    kinds: tuple[str, str] = ("the positive openings", "the negative ones"),
) -> TokenSets:
    """The first token ids of the texts of either side, without those of both.

    Args:
        model: whose tokenizer splits them.
        pair: the two sides.
        kinds: what they are called in errors.

    Raises:
        UserError: the tokenizer leaves one side empty.
    """

    def ids_of(texts: Sequence[str]) -> set[int]:
        found = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return {ids[0] for ids in found}

    one, other = map(ids_of, pair)
    shared = one & other
    if one <= shared or other <= shared:
        raise UserError(
            f"the tokenizer of {model.cfg.model_name} does not tell {kinds[0]} from "
            f"{kinds[1]} by their first token; score generated answers instead."
        )
    return sorted(one - shared), sorted(other - shared)


Measure = Callable[[Float[Tensor, "row vocab"]], dict[str, Sequence[float]]]


def log_odds(sets: Sequence[TokenSets]) -> Measure:
    """From the logits of first answer tokens to ``score_i`` and ``mass_i`` of each pair of sets.

    ``score_i`` is log P(first set) − log P(second set) in nats, ``mass_i`` the probability of
    either.
    """

    def measure(logits: Float[Tensor, "row vocab"]) -> dict[str, Sequence[float]]:
        logp, found = torch.log_softmax(logits.float(), dim=-1), dict[str, Sequence[float]]()
        for place, pair in enumerate(sets):
            one, other = (logp[:, ids].logsumexp(dim=-1) for ids in pair)
            found[f"score_{place}"] = (one - other).tolist()
            found[f"mass_{place}"] = (one.exp() + other.exp()).tolist()
        return found

    return measure


def column_names(n_pairs: int) -> tuple[str, ...]:
    """The columns that :func:`log_odds` measures, in its order."""
    return tuple(f"{what}_{place}" for place in range(n_pairs) for what in ("score", "mass"))


def resolved(table: pd.DataFrame, prompts: Sequence[Prompt], openings: Comparison) -> pd.DataFrame:
    """Score and mass of each row, ``score`` and ``mass``, from the columns of all pairs."""
    places, signs = openings.oriented(prompts)
    rows = np.arange(len(table))
    n = len(openings.pairs)
    score = table[[f"score_{place}" for place in range(n)]].to_numpy(float)[rows, places] * signs
    mass = table[[f"mass_{place}" for place in range(n)]].to_numpy(float)[rows, places]
    return pd.DataFrame({"score": score, "mass": mass}, index=table.index)


@torch.inference_mode()
def over_next_tokens(
    model: TransformerBridge,
    tokens: Sequence[Tokens],
    measure: Measure,
    batch_size: int,
    what: str,
    unit: str,
) -> dict[str, list[float]]:
    """Columns of ``measure`` of the logits after each sequence; what all start with runs once.

    Steered when called inside :func:`ss_lens.steer`. ``what`` and ``unit`` are the progress bar's.

    Raises:
        UserError: logits that are not finite.
    """
    found: dict[str, list[float]] = {}
    start = SharedStart.of(model, tokens)
    with progress_bar(len(tokens), what, unit) as bar:
        for batch in forward.batches(
            tokens,
            forward.equal_groups(forward.order_by_length(tokens), batch_size),
            side="left",
            pad_id=forward.pad_id_of(model),
            device=device_of(model),
        ):
            logits = start.logits(model, batch, batch.lengths, keep=1)[:, 0]
            check_logits(model, logits)
            for name, values in measure(logits).items():
                column = found.setdefault(name, [math.nan] * len(tokens))
                for row, value in zip(batch.rows, values, strict=True):
                    column[row] = value
            bar.update(len(batch.rows))
    return found


def first_token_scores(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    openings: Comparison,
    *,
    batch_size: int = BATCH_ROWS,
    chat: ChatFormat = DEFAULT_FORMAT,
    kinds: tuple[str, str] = ("the positive openings", "the negative ones"),
    what: str = "score of openings",
) -> pd.DataFrame:
    """Score each prompt by log P(positive opening) − log P(negative opening), in one pass.

    What all prompts start with runs once. Steered when called inside :func:`ss_lens.steer`.
    ``kinds`` are the two sides in errors, and ``what`` names the progress bar.

    Returns:
        One row per prompt: ``score`` in nats, and ``mass``, the probability of either kind.

    Raises:
        UserError: a blank prompt, one that exceeds the context or is none of the questions, a
            tokenizer that does not distinguish the openings, or logits that are not finite.
    """
    check_at_least("batch_size", batch_size)
    tokens = tokenize(model, prompts, chat)
    check_context(model, tokens, prompts)
    openings.oriented(prompts)  # before the slow part
    measure = log_odds([first_tokens(model, pair, kinds) for pair in openings.pairs])
    found = over_next_tokens(model, tokens, measure, batch_size, what, "prompt")
    table = pd.DataFrame(found, columns=[*column_names(len(openings.pairs))])
    return resolved(table, prompts, openings)
