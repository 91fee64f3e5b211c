"""The registry of scores: one module each, from which sweeps, tables and choices are derived.

A score is a module of this folder, or of one below it, that holds ``SCORE = Score(...)``. Nothing
else names it: a sweep measures it, a configuration may ask for it, an angle may be chosen by its
columns, and the tables of the command line print those that have a label.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.errors import UserError
from ss_lens.generation.angle_batch import BATCH_ROWS, Angled
from ss_lens.generation.lower_blocks import LowerBlocks
from ss_lens.models.chat import ChatFormat, Prompt

ROW = ("prompt_index", "prompt", "angle_deg")
"""The columns that distinguish the rows of one table of scores."""

Needs = Literal["prompts", "texts", "exchanges", "answers", "unsteered answers"]
"""What a score is computed from, each kind after those that it builds on.

``prompts``: one steered pass over each prompt. ``texts``: the answers as text, without a model.
``exchanges``: likewise, each answer beside its prompt. ``answers``: a pass over prompt and answer.
``unsteered answers``: passes over the unsteered model's answers.
"""
NEEDS: tuple[Needs, ...] = get_args(Needs)
OF_TEXTS: tuple[Needs, ...] = ("texts", "exchanges")
ANSWERS = "answers"
"""What a sweep calls the answers together with every score of their text."""
TEXTS = "texts"
"""What the kept scores of texts are called that are themselves cut to their first words."""

MeasureInput = Callable[["ScoreInput"], pd.DataFrame]
MeasureTexts = Callable[[Sequence[str]], pd.DataFrame]
MeasureExchanges = Callable[[Sequence[str], Sequence[str]], pd.DataFrame]


@dataclass(frozen=True)
class Column:
    """One number or truth value per answer.

    Attributes:
        name: of the column.
        label: its heading where tables are printed; a column without one is kept and not printed.
        kind: ``mean`` of numbers, or ``rate`` of truth values.
        better: which end is better text or a closer model; ``None`` where that is the question.
        undefined: whether an answer may lack a value, as a short answer lacks its repetition. A
            missing value anywhere else is an error.
    """

    name: str
    label: str | None = None
    kind: Literal["mean", "rate"] = "mean"
    better: Literal["lower", "higher"] | None = None
    undefined: bool = False

    @property
    def heading(self) -> str:
        """The label, with an arrow to the better end."""
        arrow = {"lower": " ↓", "higher": " ↑", None: ""}[self.better]
        return f"{self.label or self.name}{arrow}"


@runtime_checkable
class Comparison(Protocol):
    """What a behaviour compares by first tokens: openings, or the answers to each question."""

    @property
    def pairs(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """The distinct pairs of sides, each with the texts that answers begin with."""
        ...

    def oriented(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Of each prompt, which of :attr:`pairs` it has and the sign of its score."""
        ...


@dataclass(frozen=True, eq=False)
class ScoreInput:
    """What a score is computed from, unless it is of texts alone.

    Attributes:
        chat: what else enters the chat template.
        angles_deg: in degrees.
        answers: the columns of :data:`ROW` and ``response``; empty for a score of prompts.
        unsteered: the unsteered model's answer to each prompt, for the scores that need them.
        batch_rows: at most this many rows run at once.
        lower: what passes over prompts may share with those before; ``None`` is nothing.
        openings: of the behaviour that is measured, where it has any.
        shows: what tells from prompts and answers whether the behaviour shows: a number per
            answer, above 0 where it does.
    """

    model: TransformerBridge
    calibration: Calibration
    operator: Angled
    prompts: Sequence[str]
    chat: ChatFormat
    angles_deg: Sequence[float]
    answers: pd.DataFrame
    unsteered: Sequence[str] = ()
    batch_rows: int = BATCH_ROWS
    lower: LowerBlocks | None = None
    openings: Comparison | None = None
    shows: Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None = None


@dataclass(frozen=True)
class Score:
    """A quantity that a sweep measures.

    Attributes:
        name: what a configuration calls it. A score of texts comes with the answers.
        columns: in the order of the table.
        needs: what it is computed from.
        measure: its function, which returns a table with its columns. A score of texts takes a list
            of texts and returns a row for each, one of exchanges the answers and their prompts;
            the others take a :class:`ScoreInput`. Of these, a score of answers returns the rows of
            ``answers`` in their order, and the others bring the columns of :data:`ROW`.
        place: of its columns in tables, from left to right.
        on_request: a sweep measures it only where its configuration names it.
        version: raised when the function gives other numbers; stored cells of earlier versions are
            measured again. A score of texts is computed whenever a table is made; there the
            version is of what is kept of answers that were cut.
    """

    name: str
    columns: tuple[Column, ...]
    needs: Needs
    measure: MeasureInput | MeasureTexts | MeasureExchanges
    place: int = field(default=100, kw_only=True)
    on_request: bool = field(default=False, kw_only=True)
    version: int = field(default=1, kw_only=True)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def __call__(self, given: ScoreInput) -> pd.DataFrame:
        """The columns of :data:`ROW` and of this score, which is not of texts.

        Raises:
            UserError: a value is infinite, or missing where it has to be defined.
        """
        found = cast("MeasureInput", self.measure)(given)
        if self.needs == "answers":
            return self._beside(given.answers, found)
        return self._checked(found)

    def of_texts(self, answers: pd.DataFrame) -> pd.DataFrame:
        """The columns of :data:`ROW` and of this score of texts or exchanges.

        Args:
            answers: the columns of :data:`ROW` and ``response``.

        Raises:
            UserError: as for the other scores.
        """
        texts = answers["response"].tolist()
        if self.needs == "texts":
            return self._beside(answers, cast("MeasureTexts", self.measure)(texts))
        prompts = answers["prompt"].tolist()
        return self._beside(answers, cast("MeasureExchanges", self.measure)(texts, prompts))

    def _beside(self, answers: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
        rows = answers[[*ROW]].reset_index(drop=True)
        return self._checked(pd.concat([rows, found.reset_index(drop=True)], axis=1))

    def _checked(self, found: pd.DataFrame) -> pd.DataFrame:
        for column in self.columns:
            self._check(column, found)
        return found.filter([*ROW, *self.column_names])

    def _check(self, column: Column, found: pd.DataFrame) -> None:
        values = found[column.name].astype(float)
        wrong = np.isinf(values) | (values.isna() & (not column.undefined))
        if wrong.any():
            row = found[wrong].iloc[0]
            raise UserError(
                f"{column.name} is {row[column.name]} for the prompt {row['prompt'][:40]!r} at "
                f"{row['angle_deg']:g}°; expected a finite number. Load the model in float32 or "
                "bfloat16, and check its weights and the calibration."
            )


@lru_cache(maxsize=1)
def scores() -> tuple[Score, ...]:
    """Every score, in the order of their columns in tables."""
    room = importlib.import_module("ss_lens.scoring")
    names = [found.name for found in pkgutil.walk_packages(room.__path__, "ss_lens.scoring.")]
    modules = [importlib.import_module(name) for name in names]
    found = [module.SCORE for module in modules if isinstance(getattr(module, "SCORE", 0), Score)]
    _check_distinct(found)
    return tuple(sorted(found, key=lambda score: (score.place, score.name)))


def measured_names() -> tuple[str, ...]:
    """What a sweep can measure, each after what it builds on; scores of texts are ``answers``."""
    ranked = sorted(scores(), key=lambda score: NEEDS.index(score.needs))
    names = [ANSWERS if score.needs in OF_TEXTS else score.name for score in ranked]
    return tuple(dict.fromkeys(names))


def parts_of(name: str) -> tuple[Score, ...]:
    """The scores that ``name``, one of :func:`measured_names`, stands for."""
    if name == ANSWERS:
        return tuple(score for score in scores() if score.needs in OF_TEXTS)
    return tuple(score for score in scores() if score.name == name)


def stored_name(name: str) -> str:
    """What the cells of ``name``, one of :func:`measured_names`, are called where they are kept."""
    if name == ANSWERS:
        return name
    version = texts_version() if name == TEXTS else parts_of(name)[0].version
    return name if version == 1 else f"{name}.{version}"


def texts_version() -> int:
    """Of all scores of texts together: raised with that of any of them."""
    return 1 + sum(score.version - 1 for score in parts_of(ANSWERS))


def columns_of(name: str) -> tuple[str, ...]:
    """The columns of numbers that ``name``, one of :func:`measured_names`, brings to a table."""
    return tuple(column for score in parts_of(name) for column in score.column_names)


def all_columns() -> dict[str, Column]:
    """Every column of numbers by its name, in the order of tables."""
    return {column.name: column for score in scores() for column in score.columns}


def headings() -> dict[str, str]:
    """The columns that tables print, and how they are headed."""
    return {name: column.heading for name, column in all_columns().items() if column.label}


def measured_for(column: str) -> str:
    """The one of :func:`measured_names` that brings ``column``."""
    return next(name for name in measured_names() if column in columns_of(name))


def _check_distinct(found: Sequence[Score]) -> None:
    names = [score.name for score in found] + [ANSWERS]
    columns = [name for score in found for name in score.column_names] + [*ROW, "response"]
    for what, listed in (("score", names), ("column", columns)):
        twice = [name for i, name in enumerate(listed) if name in listed[:i]]
        assert not twice, f"the {what} {twice[0]!r} is registered twice"
