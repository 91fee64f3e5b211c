"""A behaviour: a contrastive dataset, and how its answers are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.behaviours.measures import Measures, Sense
from ss_lens.behaviours.questions import answered
from ss_lens.behaviours.readers import Function, JudgedBy, Pattern, Phrases, RatedColumn, Reader
from ss_lens.core.checks import check_is, check_one_of, check_texts
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_json
from ss_lens.core.shown import card
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.generation.angle_batch import BATCH_ROWS
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, Prompt
from ss_lens.scoring.behaviours.openings import (
    Choices,
    Openings,
    first_token_scores,
    first_tokens,
)
from ss_lens.scoring.behaviours.shown import shown_table
from ss_lens.scoring.refusal_score import refusal_openings


@dataclass(frozen=True)
class Behaviour:
    """What is steered and how it is followed; everything that says refusal by default takes one.

    Attributes:
        name: in tables and verdicts.
        dataset: prompts after which the model shows the behaviour, and those after which it does
            not; what is calibrated on, chosen on and reported are parts of it.
        openings: how answers begin (:class:`Openings`), or questions with two answers
            (:class:`Choices`). Compared by log-odds in one pass, without an answer.
        shown: what reads an answer: :class:`Phrases`, a :class:`Pattern`, a :class:`Function`, a
            judge (:class:`JudgedBy`), or the name of a column that answers have anyway
            (:class:`RatedColumn`).
        description: one sentence, for people.
        asking: system prompts that ask for less of it (``weakened``) and for more
            (``strengthened``); what steering is compared with. Refusal has its own.
        source: the name or file that it was read from; ``None`` where it was made in Python.

    Raises:
        UserError: neither openings nor anything that reads answers, or one prompt per class.
    """

    name: str
    dataset: ContrastiveDataset
    openings: Openings | Choices | None = None
    shown: Phrases | Pattern | Function | JudgedBy | RatedColumn | None = None
    description: str = ""
    asking: Mapping[Sense, tuple[str, ...]] = field(default_factory=dict, hash=False)
    source: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_is("name", self.name, (str,), "a text that names the behaviour")
        check_is("dataset", self.dataset, (ContrastiveDataset,), "a dataset from load_dataset(...)")
        kinds = (Openings, Choices, type(None))
        check_is("openings", self.openings, kinds, "Openings(...), Choices(...) or None")
        readers = (Phrases, Pattern, Function, JudgedBy, RatedColumn, type(None))
        check_is("shown", self.shown, readers, "Phrases(...), Pattern(...) or another reader")
        check_is("asking", self.asking, (Mapping,), "a mapping from a sense to system prompts")
        for sense, texts in self.asking.items():
            check_one_of("a key of asking", sense, ("weakened", "strengthened"))
            check_texts(f"asking[{sense!r}]", texts)
        if self.openings is None and self.shown is None:
            raise UserError(
                f"behaviour {self.name!r} has no scorer, expected at least one of openings, "
                "questions, phrases, pattern, judge or a function; say how its answers are scored."
            )
        fewest = min(len(self.dataset.positive), len(self.dataset.negative))
        if fewest < 2:
            raise UserError(
                f"behaviour {self.name!r} has {fewest} prompt in a class, expected at least two, "
                "since one prompt has no spread to tell a direction from; add prompts."
            )

    def __repr__(self) -> str:
        scored = ", ".join(type(one).__name__ for one in (self.openings, self.shown) if one)
        return f"Behaviour({self.name!r}, {self.dataset!r}, scored by {scored})"

    def _repr_html_(self) -> str:
        facts = {
            "what": self.description or "not described",
            "prompts": f"{self.dataset.name!r}, {len(self.dataset.positive)} positive and "
            f"{len(self.dataset.negative)} negative",
            "score": self.measures.heading,
            "shown": type(self.shown).__name__ if self.shown else "where the score is above 0",
        }
        return card(f"Behaviour {self.name!r}", facts)

    @cached_property
    def measures(self) -> Measures:
        """What its columns are called."""
        refusal = self.openings == refusal_openings()
        score = "refusal_score" if refusal else "behaviour_score"
        mass = "opening_mass" if refusal else "behaviour_mass"
        column = self.shown.column if isinstance(self.shown, RatedColumn) else None
        if self.openings is None:
            score, mass = column or "text_score", None
        reads = self.shown is not None
        return Measures(self.name, score, mass, column or "shown", reads)

    @property
    def reader(self) -> Reader | None:
        """What reads answers and is not a column that they have anyway."""
        return None if isinstance(self.shown, RatedColumn) else self.shown

    @property
    def scored_by(self) -> tuple[str, ...]:
        """The scores of a sweep that it is followed by, as configurations name them."""
        names = () if self.openings is None else (self.measures.score,)
        return names if self.reader is None else (*names, "behaviour_shown")

    def with_dataset(self, dataset: ContrastiveDataset) -> Behaviour:
        """The same behaviour on other prompts.

        Raises:
            UserError: its questions come with their answers, which other prompts have not.
        """
        if isinstance(self.openings, Choices):
            raise UserError(
                f"behaviour {self.name!r} asks questions with answers, and got the dataset "
                f"{dataset.name!r}, which has none; leave the dataset out, or read other questions."
            )
        return replace(self, dataset=dataset)

    def asked(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """What the model is asked: the prompts, or the questions without the answer they end in."""
        return tuple(self._questions.get(prompt, prompt) for prompt in prompts)

    @cached_property
    def _questions(self) -> dict[str, str]:
        asked = self.openings.questions if isinstance(self.openings, Choices) else ()
        return {answered(q, answer): q.text for q in asked for answer in (q.matching, q.other)}

    @cached_property
    def identity(self) -> str | None:
        """What stored cells of it depend on beside prompts and model; ``None`` for refusal.

        Columns that every sweep measures depend on nothing else, so that stored cells of refusal
        stay valid.
        """
        if self.measures.score == "refusal_score" and self.reader is None:
            return None
        parts = [one.as_json() for one in (self.openings, self.shown) if one is not None]
        return sha256_of_json(parts)

    def score(
        self,
        model: TransformerBridge,
        prompts: Sequence[Prompt],
        *,
        batch_size: int = BATCH_ROWS,
        chat: ChatFormat = DEFAULT_FORMAT,
    ) -> pd.DataFrame:
        """Log-odds of its openings or choices in one pass; steered inside :func:`ss_lens.steer`.

        Args:
            model: the model.
            prompts: what is asked, for questions their text; or lists of turns.
            batch_size: prompts per forward pass.
            chat: what else enters the chat template.

        Returns:
            One row per prompt: the columns ``measures.score`` in nats and ``measures.mass``, as a
            sweep calls them.

        Raises:
            UserError: it has neither openings nor questions, or what the pass objects to.
        """
        if self.openings is None:
            raise UserError(
                f"behaviour {self.name!r} has no openings or questions to compare, only answers "
                "that are read; use read(prompts, answers), or give it openings."
            )
        found = first_token_scores(model, prompts, self.openings, batch_size=batch_size, chat=chat)
        names = {"score": self.measures.score, "mass": str(self.measures.mass)}
        return found.rename(columns=names)

    def read(self, prompts: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
        """Whether each answer shows it: ``shown`` (1, 0 or missing) and ``text_score``.

        Raises:
            UserError: nothing of it reads answers, lists of different lengths, or a scorer that
                gives no value for any of them.
        """
        for name, texts in (("prompts", prompts), ("answers", answers)):
            check_texts(name, texts)
        if len(prompts) != len(answers):
            raise UserError(
                f"behaviour {self.name!r} got {len(prompts)} prompts and {len(answers)} answers, "
                "expected one answer per prompt; give the prompts that were answered."
            )
        if self.reader is None:
            raise UserError(
                f"behaviour {self.name!r} has nothing that reads answers; give it phrases, a "
                "pattern, a function or a judge, or use score(model, prompts)."
            )
        return shown_table(self.reader, prompts, answers)

    def check_ready(self) -> None:
        """Raise what would keep it from reading answers, before any is written.

        Raises:
            UserError: a function that gives no number, or a judge that cannot judge.
        """
        if isinstance(self.shown, Function | JudgedBy):
            self.shown.check_ready()

    def check_openings(self, model: TransformerBridge) -> None:
        """Raise where the tokenizer of a model does not tell its openings or answers apart."""
        for pair in () if self.openings is None else self.openings.pairs:
            first_tokens(model, pair)

    def as_json(self) -> dict[str, Any]:
        """What a run keeps of it."""
        return {**self.measures.as_json(), "identity": self.identity}
