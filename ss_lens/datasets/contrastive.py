"""Contrastive datasets: prompts that show a behaviour and prompts that do not, hashed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import zip_longest
from numbers import Integral
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

from ss_lens.core.checks import (
    check_flag,
    check_is,
    check_one_of,
    described,
    first_repeated,
    is_finite,
)
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_json
from ss_lens.core.shown import card, table
from ss_lens.datasets import readers as dataset_files

CLASSES = ("positive", "negative")
SHOWN = 3
"""Prompts of each class that a notebook shows."""


class Embedded(NamedTuple):
    """What an embedded dataset holds, what it is for, and the licence of its texts."""

    contents: str
    purpose: str
    licence: str


EMBEDDED: Mapping[str, Embedded] = {
    "refusal": Embedded(
        "harmful requests against harmless ones matched in topic, length and form",
        "refusal, with nothing but harm to tell the classes apart",
        "MIT",
    ),
    "refusal-everyday": Embedded(
        "harmful requests against everyday tasks of the same length",
        "refusal, with the paper's kind of contrast",
        "MIT",
    ),
    "sentiment": Embedded(
        "positive sentences against negative ones on the same subjects",
        "a behaviour other than refusal",
        "MIT",
    ),
}
CLASS_VALUES: Mapping[str, str] = {
    **dict.fromkeys(("positive", "harmful", "1", "true"), "positive"),
    **dict.fromkeys(("negative", "harmless", "0", "false"), "negative"),
}
"""How the values of a class column are read, after lower-casing."""


@dataclass(frozen=True)
class ContrastiveDataset:
    """Two classes of prompts; ``positive`` shows the behaviour (harmful requests → refusal).

    Where the data are ``paired``, prompts of equal index are partners: alike in length, or in form
    and topic as well. Methods that work on the differences of partners need that.

    Raises:
        UserError: an empty class, a blank prompt, a repeated prompt, or paired classes of
            different size.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    paired: bool = False

    def __post_init__(self) -> None:
        check_is("name", self.name, (str,), "a text that names the dataset")
        check_flag("paired", self.paired)
        object.__setattr__(self, "positive", _as_prompts("positive", self.positive))
        object.__setattr__(self, "negative", _as_prompts("negative", self.negative))
        for label, prompts in (("positive", self.positive), ("negative", self.negative)):
            if not prompts:
                raise UserError(
                    f"dataset {self.name!r} has no {label} prompt; both classes need at least one."
                )
            for index, prompt in enumerate(prompts):
                problem = _problem(prompt)
                if problem:
                    raise UserError(
                        f"{label} prompt {index} of dataset {self.name!r} {problem}; remove it."
                    )
            if (repeated := first_repeated(prompts)) is not None:
                raise UserError(
                    f"the {label} prompt {_short(repeated)} of dataset {self.name!r} appears "
                    "twice, so it could be both calibrated on and reported; keep one."
                )
        if both := set(self.positive) & set(self.negative):
            raise UserError(
                f"the prompt {_short(min(both))} of dataset {self.name!r} is in both classes; "
                "remove it from one."
            )
        if self.paired and len(self.positive) != len(self.negative):
            raise UserError(
                f"dataset {self.name!r} is said to be paired but has {len(self.positive)} positive "
                f"and {len(self.negative)} negative prompts; give each prompt its partner, or say "
                "paired=False."
            )

    def __repr__(self) -> str:
        sizes = f"{len(self.positive)} positive, {len(self.negative)} negative"
        sizes += ", paired" if self.paired else ""
        return f"ContrastiveDataset({self.name!r}, {sizes}, digest={self.digest[:12]})"

    def _repr_html_(self) -> str:
        facts = {
            "prompts": f"{len(self.positive)} positive and {len(self.negative)} negative"
            f"{', paired' if self.paired else ''}",
            "digest": self.digest[:12],
        }
        first = [*zip_longest(self.positive[:SHOWN], self.negative[:SHOWN], fillvalue="")]
        rows = table(CLASSES, first, caption="the first of each class", length=120)
        return card(f"Dataset {self.name!r}", facts, rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the prompts in order, independent of the name and of ``paired``."""
        return sha256_of_json({"positive": self.positive, "negative": self.negative})

    def head(self, n: int) -> ContrastiveDataset:
        """The first ``n`` prompts of each class."""
        if not isinstance(n, int) or n < 1:
            raise UserError(f"a subset needs at least one prompt per class; got {n}.")
        return ContrastiveDataset(self.name, self.positive[:n], self.negative[:n], self.paired)

    def split(self, *, dev: int | float, test: int | float, seed: int) -> DatasetSplit:
        """Disjoint ``train``, ``dev`` and ``test`` parts, the same for the same seed.

        Args:
            dev: prompts per class (an ``int``), or a share of each class (a ``float`` below 1).
            test: likewise.
            seed: orders both classes by one permutation, so that partners in a paired dataset
                (equal index) always fall into the same part.

        Raises:
            UserError: a part would be empty.
        """
        check_part("dev", dev)
        check_part("test", test)
        check_is("seed", seed, (Integral,), "a whole number such as 0")
        order = list(range(max(len(self.positive), len(self.negative))))
        Random(int(seed)).shuffle(order)
        parts: dict[str, dict[str, list[str]]] = {"train": {}, "dev": {}, "test": {}}
        for label, prompts in (("positive", self.positive), ("negative", self.negative)):
            shuffled = [prompts[i] for i in order if i < len(prompts)]
            n_dev, n_test = (_count(part, len(prompts)) for part in (dev, test))
            if min(n_dev, n_test, len(prompts) - n_dev - n_test) < 1:
                raise UserError(
                    f"cannot split the {len(prompts)} {label} prompts of {self.name!r} into dev="
                    f"{dev}, test={test} and a rest to calibrate on; each part needs at least one."
                )
            parts["dev"][label] = shuffled[:n_dev]
            parts["test"][label] = shuffled[n_dev : n_dev + n_test]
            parts["train"][label] = shuffled[n_dev + n_test :]
        return DatasetSplit(
            *(
                ContrastiveDataset(
                    f"{self.name}/{name}",
                    tuple(part["positive"]),
                    tuple(part["negative"]),
                    self.paired,
                )
                for name, part in parts.items()
            )
        )


class DatasetSplit(NamedTuple):
    """Calibrate on ``train``, choose on ``dev``, report on ``test``."""

    train: ContrastiveDataset
    dev: ContrastiveDataset
    test: ContrastiveDataset


def check_part(name: str, part: object) -> None:
    """Raise unless ``part`` is a number of prompts, or a share of them."""
    number = part if isinstance(part, int | float) and not isinstance(part, bool) else math.nan
    if not is_finite(number):
        raise UserError(
            f"{name} must be prompts per class (a whole number) or a share (below 1); got "
            f"{described(part)}."
        )


def load_dataset(
    source: str | Path | None = None,
    *,
    positive: str | Path | Sequence[str] | None = None,
    negative: str | Path | Sequence[str] | None = None,
    prompt_column: str = "prompt",
    class_column: str = "class",
    class_values: Mapping[str, str] = CLASS_VALUES,
    paired: bool = False,
) -> ContrastiveDataset:
    """Load a contrastive dataset.

    Args:
        source: an embedded name (``refusal``, ``sentiment``) or a ``.jsonl``, ``.json`` or ``.csv``
            file with a prompt and a class column. A ``.json`` file may also be
            ``{"positive": [...], "negative": [...]}``.
        positive: instead of ``source``, the prompts of one class: a list of texts, a file as above
            (its class column is not read), a ``.txt`` file with one prompt per line, a Hub id, or a
            local folder in the Hub's layout.
        negative: likewise.
        prompt_column: the column that holds the prompt.
        class_column: the column that holds the class.
        class_values: what its values mean, lower-cased; each maps to ``positive`` or ``negative``.
        paired: the i-th prompts of the two classes are partners. The embedded datasets are paired,
            whatever is said here: partners in ``refusal-everyday`` are alike in length alone,
            the others in form and topic too.

    Hub ids are read from their ``train`` split with this mapping (others: ``prompt_column``):

    ==================== ================= ==========================================
    id                   prompt            rows
    ==================== ================= ==========================================
    walledai/AdvBench    ``prompt``        all (gated: accept its terms on the Hub)
    tatsu-lab/alpaca     ``instruction``   those with an empty ``input``
    ==================== ================= ==========================================

    Raises:
        UserError: the source is unknown, unreadable, or lacks what the mapping names; or it is said
            to be paired and its classes differ in size.
    """
    for argument, column in (("prompt_column", prompt_column), ("class_column", class_column)):
        check_is(argument, column, (str,), "the name of a column, as text")
    check_flag("paired", paired)
    if prompt_column == class_column:
        raise UserError(
            f"column {prompt_column!r} is mapped twice, as prompt and as class; name two columns."
        )
    check_is("class_values", class_values, (Mapping,), "a mapping from value to class")
    for value, label in class_values.items():
        check_is("a value in class_values", value, (str,), "a text")
        check_one_of(f"class_values[{value!r}]", label, ("positive", "negative"))
    if source is not None:
        check_is(
            "source", source, (str, Path), "a name or a path, or lists as positive= and negative="
        )
        if positive is not None or negative is not None:
            raise UserError("give either one source, or positive= and negative=, not both.")
        return _load_both(source, prompt_column, class_column, class_values, paired)
    if (positive is None) != (negative is None):
        given, missing = CLASSES if negative is None else CLASSES[::-1]
        raise UserError(
            f"the {given} prompts are given without {missing} ones, expected a source, or both "
            f"positive= and negative=; embedded: {', '.join(EMBEDDED)}. Give {missing}= too "
            f"(--{missing} on the command line)."
        )
    if positive is None or negative is None:
        raise UserError(
            "give a source (an embedded name or a file), or both positive= and negative=; "
            f"embedded: {', '.join(EMBEDDED)}."
        )
    return ContrastiveDataset(
        f"{_class_name(positive)}-vs-{_class_name(negative)}",
        _load_class("positive", positive, prompt_column),
        _load_class("negative", negative, prompt_column),
        paired,
    )


def _load_both(
    source: str | Path,
    prompt_column: str,
    class_column: str,
    class_values: Mapping[str, str],
    paired: bool,
) -> ContrastiveDataset:
    if str(source) in EMBEDDED:
        text = (
            resources.files("ss_lens.datasets")
            .joinpath(f"embedded/{source}.jsonl")
            .read_text("utf-8")
        )
        rows = [json.loads(line) for line in text.split("\n") if line]
        name, paired = str(source), True
    else:
        if dataset_files.is_file(source, (".txt",)) and _exists(source):
            raise UserError(
                f"{str(source)!r} holds one class, one prompt per line; give it as positive= or "
                "negative= of load_dataset, or write both classes into one .jsonl file."
            )
        if not dataset_files.is_file(source):
            raise UserError(
                f"{str(source)!r} is neither an embedded dataset ({', '.join(EMBEDDED)}) nor a "
                ".jsonl, .json or .csv file. A Hub dataset holds one class: give it as positive= "
                "or negative= of load_dataset."
            )
        rows, name = dataset_files.read_rows(Path(source)), Path(source).name
    classes: dict[str, list[str]] = {"positive": [], "negative": []}
    for number, row in enumerate(rows, start=1):
        cell = _cell(row, class_column, name, number)
        value = "null" if cell is None else str(cell).strip().lower()
        if class_values.get(value) not in classes:
            raise UserError(
                f"row {number} of {name} has class {value!r}; expected one of "
                f"{', '.join(class_values)}. Write one of these, or map the values in Python: "
                f"load_dataset(..., class_values={{{value!r}: 'positive', ...}}); on the command "
                f"line: --class-values {value}=positive,…"
            )
        classes[class_values[value]].append(_prompt(row, prompt_column, name, number))
    return ContrastiveDataset(name, tuple(classes["positive"]), tuple(classes["negative"]), paired)


def _load_class(
    label: str, source: str | Path | Sequence[str], prompt_column: str
) -> tuple[str, ...]:
    if isinstance(source, str) and not source.strip():
        raise UserError(f"{label} is blank; give a list of prompts, a file or a Hub id.")
    if not isinstance(source, str | Path):
        return _as_prompts(label, source)
    if dataset_files.is_file(source, (".txt",)):
        return tuple(dataset_files.read_lines(Path(source)))
    if dataset_files.is_file(source):
        rows = dataset_files.read_rows(Path(source))
    else:
        rows, prompt_column = dataset_files.read_hub_rows(str(source), prompt_column)
    return tuple(_prompt(row, prompt_column, str(source), n) for n, row in enumerate(rows, start=1))


def _as_prompts(label: str, prompts: object) -> tuple[Any, ...]:
    """A list as a tuple; the prompts themselves are checked by the dataset."""
    if isinstance(prompts, str | bytes):
        raise UserError(f"{label} must be a list of prompts; got one text. Write [prompt].")
    check_is(label, prompts, (Sequence,), "a list of prompts")
    return tuple(cast(Sequence[Any], prompts))


def _class_name(source: str | Path | Sequence[str]) -> str:
    return Path(source).name if isinstance(source, str | Path) else "list"


def _exists(source: str | Path) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # a name that is too long
        return False


def _problem(prompt: object) -> str | None:
    """What is wrong with a prompt, as a predicate."""
    if not isinstance(prompt, str):
        return f"is {described(prompt)}, which is not a text"
    if not prompt.strip():
        return "is blank"
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        return f"is not valid Unicode (character {error.start} is {prompt[error.start]!r})"
    return None


def _prompt(row: Mapping[str, Any], column: str, name: str, number: int) -> str:
    prompt = _cell(row, column, name, number)
    problem = "is null" if prompt is None else _problem(prompt)
    if problem == "is blank":
        raise UserError(f"row {number} of {name} has a blank prompt; fill it in or remove the row.")
    if problem:
        raise UserError(
            f"the prompt in row {number} of {name} {problem}; write a text or remove the row."
        )
    return cast(str, prompt)


def _cell(row: Mapping[str, Any], column: str, name: str, number: int) -> Any:
    if column not in row:
        raise UserError(
            f"row {number} of {name} has no column {column!r}; it has {', '.join(row) or 'none'}. "
            "Name the right one with prompt_column= or class_column=."
        )
    return row[column]


def _count(part: int | float, total: int) -> int:
    return part if isinstance(part, int) else round(part * total)


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
