"""Behaviours from YAML files: the embedded ones by name, a user's own by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.measures import Sense
from ss_lens.behaviours.questions import contrast_of, read_questions
from ss_lens.behaviours.readers import JudgedBy, Pattern, RatedColumn, read_phrases
from ss_lens.core.checks import check_is, described
from ss_lens.core.errors import UserError
from ss_lens.core.values import with_argument
from ss_lens.core.yaml import Section, read_yaml
from ss_lens.datasets.contrastive import EMBEDDED, ContrastiveDataset, load_dataset
from ss_lens.datasets.readers import CLASS_SUFFIXES, is_file
from ss_lens.judges import EndpointJudge, RubricJudge, read_judge
from ss_lens.judges.rubric import OF_REPLIES, OF_WORDS, beside
from ss_lens.scoring.behaviours.openings import Choices, Openings

BEHAVIOURS = ("refusal", "sentiment", "formality", "language")
"""Those that come with the package."""
SUFFIXES = (".yaml", ".yml")
_READERS = ("phrases", "pattern", "judge", "column")


class _Sides(Section):
    """How answers begin."""

    section: ClassVar[str] = "openings"
    positive: list[str]
    negative: list[str]


class _Asking(Section):
    """System prompts that ask for less and for more of the behaviour."""

    section: ClassVar[str] = "asking"
    weakened: list[str] = Field(default_factory=list)
    strengthened: list[str] = Field(default_factory=list)


class _File(Section):
    """What a YAML file of a behaviour may hold.

    Attributes:
        dataset: an embedded name or a file with both classes; in its place ``positive`` and
            ``negative`` (lists of prompts, or a file each), or ``questions``.
        paired: the i-th prompts of the two classes are partners.
        openings: lists ``positive`` and ``negative`` of how answers begin.
        phrases: a list, or lists ``positive`` and ``negative``.
        column: one that every answer has anyway, such as ``refused``.
        asking: lists ``weakened`` and ``strengthened`` of system prompts to compare with.
    """

    section: ClassVar[str] = "the behaviour"
    name: str | None = None
    description: str = ""
    dataset: str | None = None
    paired: bool = False
    positive: str | list[str] | None = None
    negative: str | list[str] | None = None
    questions: str | None = None
    openings: _Sides | None = None
    phrases: Any = None
    pattern: str | None = None
    judge: str | None = None
    column: str | None = None
    asking: _Asking | None = None


def load_behaviour(source: str | Path) -> Behaviour:
    """Load an embedded behaviour by name, or read a YAML file.

    Files that it names are looked for beside it, then where the process runs.

    Raises:
        UserError: no such behaviour or file, an unknown key, no prompts or two kinds of them, no
            scorer or two readers of answers, labels of another layout, or one prompt per class.
    """
    check_is("source", source, (str, Path), "a name such as 'language', or a YAML file")
    if str(source) in BEHAVIOURS:
        return _read(Path(__file__).parent / "embedded" / f"{source}.yaml", str(source))
    if Path(source).suffix.lower() not in SUFFIXES:
        raise UserError(
            f"unknown behaviour {str(source)!r:.60}, expected {', '.join(BEHAVIOURS)} or a "
            ".yaml file; check the name."
        )
    try:
        return _read(Path(source), str(source))
    except UserError as error:
        if str(source) in str(error):
            raise
        raise UserError(f"{source}: {error}") from error


def behaviour_beside_refusal(source: str | None) -> Behaviour | None:
    """The behaviour of a configuration; ``None`` for refusal, which is followed without one."""
    return None if source in (None, "refusal") else load_behaviour(str(source))


def _read(path: Path, source: str) -> Behaviour:
    values = read_yaml(path, "behaviour")
    for key, kind in (("openings", _Sides), ("asking", _Asking)):
        if isinstance(values.get(key), dict):
            values[key] = kind(**values[key])
        elif values.get(key) is not None:
            known = " and ".join(kind.model_fields)
            raise UserError(
                f"{key} is {described(values[key])}, expected the keys {known} with a list of "
                "texts each; write both."
            )
    given = _File(**values)
    name = given.name or path.stem
    data, choices = _prompts(given, path.parent, name)
    readers = [key for key in _READERS if getattr(given, key) is not None]
    if len(readers) > 1:
        raise UserError(
            f"answers would be read by {' and by '.join(readers)}, expected one of them; keep one."
        )
    if choices is not None and given.openings is not None:
        raise UserError(
            "questions are given beside openings, expected one of them, since questions come with "
            "the answers to compare; leave out the openings."
        )
    openings = choices
    if given.openings is not None:
        openings = Openings(tuple(given.openings.positive), tuple(given.openings.negative))
    return Behaviour(
        name=name,
        dataset=data,
        openings=openings,
        shown=_reader(given, path.parent),
        description=given.description,
        asking=_asking(given.asking),
        source=source,
    )


def _asking(given: _Asking | None) -> dict[Sense, tuple[str, ...]]:
    if given is None:
        return {}
    return {"weakened": tuple(given.weakened), "strengthened": tuple(given.strengthened)}


def _prompts(given: _File, folder: Path, name: str) -> tuple[ContrastiveDataset, Choices | None]:
    pair = given.positive is not None or given.negative is not None
    kinds = {"dataset": given.dataset, "positive and negative": pair, "questions": given.questions}
    named = [kind for kind, value in kinds.items() if value]
    if len(named) != 1:
        raise UserError(
            f"the prompts of behaviour {name!r} are given as {' and as '.join(named) or 'nothing'}"
            ", expected one of dataset, positive and negative, or questions; keep or add one."
        )
    if given.questions is not None:
        path = _found(given.questions, folder)
        choices = read_questions(path)
        return contrast_of(choices, path.name), choices
    if given.dataset is not None:
        place = given.dataset if given.dataset in EMBEDDED else _found(given.dataset, folder)
        return load_dataset(place, paired=given.paired), None
    if given.positive is None or given.negative is None:
        missing = "positive" if given.positive is None else "negative"
        raise UserError(
            f"the {missing} prompts of behaviour {name!r} are missing, expected both classes; add "
            f"{missing}: with a list or a file."
        )
    one, other = (
        _found(texts, folder)
        if isinstance(texts, str) and is_file(texts, CLASS_SUFFIXES)
        else texts
        for texts in (given.positive, given.negative)
    )
    made = load_dataset(positive=one, negative=other)
    return ContrastiveDataset(name, made.positive, made.negative, given.paired), None


def _reader(given: _File, folder: Path) -> Any:
    if given.phrases is not None:
        return read_phrases(given.phrases)
    if given.pattern is not None:
        return Pattern(given.pattern)
    if given.judge is not None:
        return JudgedBy(_with_rubric_beside(given.judge, folder))
    return None if given.column is None else RatedColumn(given.column)


def _with_rubric_beside(text: str, folder: Path) -> str:
    """A judge whose rubric is a file beside the YAML file, where there is one of that name."""
    judge = read_judge(text)
    if not isinstance(judge, EndpointJudge | RubricJudge):
        return text
    kind = OF_WORDS if isinstance(judge, RubricJudge) else OF_REPLIES
    rubric = beside(judge.rubric, folder, kind)
    return text if rubric == judge.rubric else with_argument(text, "rubric", rubric)


def _found(text: str, folder: Path) -> Path:
    """A file beside the YAML file, or one where the process runs."""
    beside = folder / Path(text).expanduser()
    return beside if beside.exists() else Path(text).expanduser()
