"""Options of the verbs: how they are declared, and their texts as the values that they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

import ss_lens
from ss_lens.cli import console
from ss_lens.core.errors import UserError
from ss_lens.models.sources import DEFAULT_MODEL as DEFAULT_MODEL, default_dataset

if TYPE_CHECKING:
    from ss_lens.activations.spec import Position
    from ss_lens.models.chat import ChatFormat
    from ss_lens.models.sites import Stream

DEFAULT_RULE = "site"
EIGHT_ANGLES = "0,45,90,135,180,225,270,315"

Model = Annotated[str, typer.Option(help="Registered name, Hub id, local folder or .gguf file.")]
BY_MODEL = "by the model: refusal or refusal-everyday"
Dataset = Annotated[
    str | None,
    typer.Option(help="Embedded name or .jsonl/.json/.csv file.", show_default=BY_MODEL),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[
    str, typer.Option(help="auto, fast (bfloat16 where it is native), float32, bfloat16, float16.")
]
Rule = Annotated[
    str, typer.Option(help="Sites to steer: site, block, uniform, or a rule like TopK(k=8).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Limit = Annotated[int | None, typer.Option(help="Use the first N prompts of each class.")]
NewTokens = Annotated[int, typer.Option(help="Length at which an answer is cut off.")]
DevPrompts = Annotated[int, typer.Option(help="Prompts per class kept for choosing.")]
TestPrompts = Annotated[int, typer.Option(help="Prompts per class that are reported.")]
SplitSeed = Annotated[int, typer.Option(help="Of the split.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace another calibration that --out holds.")
]
System = Annotated[str | None, typer.Option(help="System prompt, in place of the template's own.")]
Date = Annotated[
    str | None, typer.Option(help="YYYY-MM-DD that the template takes for today; fixed otherwise.")
]
TemplateArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--template-argument",
        metavar="NAME=VALUE",
        help="What else the template reads, like enable_thinking=false; may be repeated.",
    ),
]


def angles(text: str) -> tuple[float, ...]:
    """The angles in ``0,90,180``."""
    from ss_lens.geometry.strengths import check_count

    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--angles {text!r:.60} is not a list of numbers like 0,90,180.") from None
    check_count(numbers)
    return cast("tuple[float, ...]", ss_lens.RotateBy(numbers).angle_deg)


def rule(text: str) -> str:
    """The text of a selection rule, once it has been read as one."""
    from ss_lens.calibration.site_selection import as_rule

    as_rule(text)
    return text


def streams(text: str) -> tuple[Stream, ...]:
    """The streams in ``ln1_out,ln2_out``."""
    from ss_lens.models.sites import STREAMS

    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in STREAMS:
            raise UserError(f"unknown stream {name!r}; streams are {', '.join(STREAMS)}.")
    return cast("tuple[Stream, ...]", names)


def position(text: str) -> Position:
    """A negative token index, or the name of a mean."""
    from typing import get_args

    from ss_lens.activations.spec import Position

    named = get_args(get_args(Position)[1])
    if text in named:
        return cast("Position", text)
    try:
        index = int(text)
    except ValueError:
        raise UserError(
            f"--position {text!r} is neither a negative integer nor {' or '.join(named)}."
        ) from None
    if index >= 0:
        raise UserError(
            f"position must be a negative token index, {' or '.join(map(repr, named))}; got "
            f"{index}. Prompts differ in length, so tokens are counted from the end: −1 is the "
            "last."
        )
    return index


def dataset_name(given: str | None, model: str) -> str:
    """The dataset that is asked for; else that of the model, which a line names."""
    if given is not None:
        return given
    name = default_dataset(model)
    console.note(f"dataset {name}, the default for {model}")
    return name


def dataset(given: str | None, model: str, limit: int | None = None) -> ss_lens.ContrastiveDataset:
    """The dataset, or its first prompts of each class."""
    return first(ss_lens.load_dataset(dataset_name(given, model)), limit)


def first(data: ss_lens.ContrastiveDataset, limit: int | None) -> ss_lens.ContrastiveDataset:
    """The dataset, or its first prompts of each class."""
    if limit is None:
        return data
    few = data.head(limit)
    if limit > min(len(few.positive), len(few.negative)):
        console.note(
            f"--limit {limit} is more than {data.name!r} has per class; "
            f"{len(few.positive)} + {len(few.negative)} prompts are used."
        )
    return few


def chat(system: str | None, date: str | None, arguments: list[str] | None) -> ChatFormat:
    """What enters the chat template beside the prompt.

    The value of an argument is read as JSON where it is JSON (``false``, ``3``, ``null``), and as
    text otherwise.
    """
    from ss_lens.models.chat import DATE, ChatFormat

    pairs: dict[str, str | bool | int | float | None] = {}
    for text in arguments or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(
                f"--template-argument {text!r} has no value; write it like enable_thinking=false."
            )
        if name in pairs:
            raise UserError(f"the template argument {name!r} is given twice; keep one.")
        try:
            pairs[name] = json.loads(value)
        except ValueError:
            pairs[name] = value
    return ChatFormat(system, DATE if date is None else date, pairs)


def question(prompt: str, max_new_tokens: int, temperature: float = 0) -> str:
    """A prompt that can be asked and answered."""
    from ss_lens.core.checks import check_at_least
    from ss_lens.generation.loop import check_temperature
    from ss_lens.models.chat import check_prompts

    check_prompts([prompt])
    check_at_least("max_new_tokens", max_new_tokens)
    check_temperature(temperature)
    return prompt


def refuse_beside(option: str, **others: object) -> None:
    """Raise where ``option`` is given beside others that it makes void."""
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    if given:
        raise UserError(
            f"{option} is given beside {' and '.join(given)}, which would have no effect; leave "
            "out one or the other."
        )


def free_folder(folder: Path) -> Path:
    """A folder where a calibration may be saved."""
    from ss_lens.calibration.stored import JSON, TENSORS
    from ss_lens.core.files import check_can_be_made, check_replaceable

    check_replaceable(folder, {JSON, TENSORS}, "calibration")
    check_can_be_made(folder)
    return folder
