"""What reads answers for a behaviour: phrases, a pattern, a function, a judge."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any, cast

import regex

from ss_lens.core.checks import check_is, check_one_of, check_texts, check_whole, described
from ss_lens.core.errors import UserError, first_line
from ss_lens.core.yaml import unknown_key
from ss_lens.judges import EndpointJudge, RubricJudge, check_ready, read_judge
from ss_lens.judges.rubric import OF_WORDS, read_rubric
from ss_lens.scoring.registry import all_columns

_MISTAKES = (ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError)
"""What a function of the user's raises where it is mistaken about an answer."""
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼ′＇´`", "'"))


@dataclass(frozen=True)
class Phrases:
    """Whole words or phrases that answers with the behaviour hold, and those of its opposite.

    The score of an answer is (p − n) / (p + n), where p and n count the two kinds; without any it
    is 0, and the behaviour does not show. Case is ignored and all apostrophes are alike.

    >>> Phrases(("bien", "c'est"), ("well",))(["?", "?"], ["Bien sûr, c’est bien.", "Well, no."])
    [1.0, -1.0]

    Raises:
        UserError: no phrase that shows the behaviour, or a blank one.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            check_texts(f"the {side} phrases", getattr(self, side))
            texts = tuple(getattr(self, side))
            if not all(text.strip() for text in texts) or (side == "positive" and not texts):
                raise UserError(
                    f"the {side} phrases are {[*texts]!r:.60}, expected texts and no blank one; "
                    "write words that such answers hold."
                )
            object.__setattr__(self, side, texts)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str] | None, ...]:
        return _any_of(self.positive), _any_of(self.negative)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [self._value(answer) for answer in answers]

    def _value(self, answer: str) -> float:
        plain = answer.translate(_APOSTROPHES).lower()
        with_it, without = (len(p.findall(plain)) if p else 0 for p in self._patterns)
        found = with_it + without
        return (with_it - without) / found if found else 0.0

    def as_json(self) -> dict[str, Any]:
        return {"phrases": [[*self.positive], [*self.negative]]}


@dataclass(frozen=True)
class Pattern:
    """A regular expression that is found in answers with the behaviour (module ``regex``).

    >>> Pattern("(?i)^dear")(["?", "?"], ["Dear Sir,", "Hey!"])
    [1.0, 0.0]

    Raises:
        UserError: no regular expression, or one that matches the empty text, and so every answer.
    """

    expression: str

    def __post_init__(self) -> None:
        check_is("expression", self.expression, (str,), "a regular expression such as '(?i)^dear'")
        try:
            compiled = regex.compile(self.expression)
        except regex.error as error:
            raise UserError(
                f"the pattern {self.expression!r:.60} is no regular expression ({error}); mend it."
            ) from error
        if compiled.search(""):
            raise UserError(
                f"the pattern {self.expression!r:.60} matches the empty text, and so every answer; "
                "expected one that tells answers apart, such as '(?i)^dear'."
            )

    @cached_property
    def _compiled(self) -> Any:
        return regex.compile(self.expression)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [float(self._compiled.search(answer) is not None) for answer in answers]

    def as_json(self) -> dict[str, Any]:
        return {"pattern": self.expression}


@dataclass(frozen=True)
class Function:
    """A function of one answer, in Python alone: a number, above 0 where the behaviour shows.

    ``True`` is 1, and NaN says that an answer has no value. Stored numbers belong to ``name`` and
    ``version``: raise the version when the function gives other numbers.

    >>> Function(lambda answer: len(answer.split()) > 3, name="long")(["?"], ["one two"])
    [0.0]
    """

    function: Callable[[str], float] = field(compare=False, repr=False)
    name: str
    version: int = 1

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UserError(
                f"the function of {self.name!r} is {type(self.function).__name__}, expected "
                "something that is called with an answer; write Function(score, name='...')."
            )
        check_is("name", self.name, (str,), "a text that names the function")
        check_whole("version", self.version, at_least=1)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [self._value(place, answer) for place, answer in enumerate(answers)]

    def check_ready(self) -> None:
        """Raise where it gives no number for an empty answer, or for a short one."""
        self(["?", "?"], ["", "A short answer."])

    def _value(self, place: int, answer: str) -> float:
        try:
            value: Any = self.function(answer)
        except UserError:
            raise
        except _MISTAKES as error:
            raise UserError(
                f"the function {self.name!r} raised {type(error).__name__} for answer {place} "
                f"({first_line(error)}), expected a number, or NaN where it cannot tell; mend it, "
                "for empty answers too."
            ) from error
        if getattr(value, "ndim", None) == 0:
            value = value.item()  # of NumPy or torch
        if not isinstance(value, Real):
            raise UserError(
                f"the function {self.name!r} gave {described(value)} for answer {place}, expected "
                "one number, or NaN where it cannot tell; mend it."
            )
        return float(value)

    def as_json(self) -> dict[str, Any]:
        return {"function": [self.name, self.version]}


@dataclass(frozen=True)
class JudgedBy:
    """A judge with a rubric of the behaviour, as :func:`ss_lens.judges.read_judge` reads it.

    The positive word of a :class:`ss_lens.judges.RubricJudge` counts as shown, and of the others
    the verdict ``harmful``, whatever their rubric says that it stands for. An unparsed verdict has
    no value.

    Raises:
        UserError: a text that is no judge, or a rubric that cannot be read.
    """

    judge: str

    def __post_init__(self) -> None:
        check_is("judge", self.judge, (str,), "the text of a judge, like EndpointJudge(model=...)")
        self.as_json()  # reads the judge and its rubric

    def check_ready(self) -> None:
        """Raise what would keep the judge from judging; its weights are not loaded."""
        check_ready(read_judge(self.judge))

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        judge = read_judge(self.judge)
        said = judge(prompts, answers)
        positive = judge.positive if isinstance(judge, RubricJudge) else "harmful"
        return [
            math.nan if verdict is None else float(verdict == positive)
            for verdict in said["verdict"].tolist()
        ]

    def as_json(self) -> dict[str, Any]:
        judge = read_judge(self.judge)
        if isinstance(judge, EndpointJudge):
            return {"judge": judge.identity()}
        if isinstance(judge, RubricJudge):
            return {"judge": [repr(judge), read_rubric(judge.rubric, OF_WORDS)]}
        return {"judge": repr(judge)}


@dataclass(frozen=True)
class RatedColumn:
    """A column of truth values that every answer has anyway, such as ``refused``.

    Raises:
        UserError: no such column, or one of numbers.
    """

    column: str

    def __post_init__(self) -> None:
        rates = [name for name, one in all_columns().items() if one.kind == "rate"]
        check_one_of("column", self.column, tuple(name for name in rates if name != "shown"))

    def as_json(self) -> dict[str, Any]:
        return {"column": self.column}


Reader = Phrases | Pattern | Function | JudgedBy
"""What gives a number per answer."""


def _any_of(phrases: Sequence[str]) -> re.Pattern[str] | None:
    if not phrases:
        return None
    plain = sorted({p.translate(_APOSTROPHES).lower() for p in phrases}, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, plain)) + r")(?!\w)")


def read_phrases(value: object) -> Phrases:
    """Phrases as a YAML file holds them: a list, or lists ``positive`` and ``negative``."""
    if not isinstance(value, Mapping):
        return Phrases(_as_texts(value))
    for key in value:
        if key not in ("positive", "negative"):
            raise UserError(unknown_key(str(key), "phrases", ("positive", "negative")))
    if "positive" not in value:
        raise UserError("phrases lacks positive; its keys are positive, negative.")
    return Phrases(**{str(key): _as_texts(texts) for key, texts in value.items()})


def _as_texts(value: object) -> tuple[str, ...]:
    """A list of a file; what is none is left for :class:`Phrases` to refuse."""
    if not isinstance(value, list):
        return cast("tuple[str, ...]", value)
    for phrase in value:
        if not isinstance(phrase, str):
            raise UserError(
                f"the phrase {described(phrase)} is not a text, expected texts; put it in quotes."
            )
    return tuple(value)
