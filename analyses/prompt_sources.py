"""Prompts of several sources, each with a name: what an effect is compared across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ss_lens import UserError
from ss_lens.datasets.readers import CLASS_SUFFIXES, is_file, read_lines, read_rows

Prompt = TypeVar("Prompt")
Sources = dict[str, tuple[str, ...]]
"""Prompts by the name of their source."""


def read_sources(given: Sequence[str], most: int | None = None) -> Sources:
    """Prompts by name, from texts ``NAME=FILE`` or ``NAME=FILE:COLUMN=VALUE``.

    Args:
        given: the files have a column ``prompt``, or a prompt per line (``.txt``); with
            ``COLUMN=VALUE``, only those rows count.
        most: so many evenly spaced prompts of each, where it has more: files are often in the order
            of their topics.

    Raises:
        UserError: another form, a name that is given twice, a file that cannot be read or holds no
            such prompt.
    """
    found: Sources = {}
    for text in given:
        name, _, place = text.partition("=")
        path, _, condition = place.partition(":")
        if not name or not path or (condition and "=" not in condition):
            raise UserError(
                f"a source of prompts is written NAME=FILE or NAME=FILE:COLUMN=VALUE; got {text!r}."
            )
        if name in found:
            raise UserError(f"the source {name!r} is given twice; give each a name of its own.")
        prompts = _prompts(Path(path), condition)
        found[name] = tuple(spread(prompts, most or len(prompts)))
    return found


def spread(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most so many of the prompts, evenly spaced, the first among them.

    >>> spread(["a", "b", "c", "d", "e"], 2)
    ['a', 'c']
    """
    n = min(most, len(prompts))
    return [prompts[i * len(prompts) // n] for i in range(n)]


def _prompts(path: Path, condition: str) -> list[str]:
    if not is_file(path, CLASS_SUFFIXES):
        raise UserError(
            f"prompts are read from {', '.join(CLASS_SUFFIXES)} files; got {str(path)!r}."
        )
    if path.suffix.lower() == ".txt" and condition:
        raise UserError(f"{path} is plain text and has no column; leave :{condition} out.")
    if path.suffix.lower() == ".txt":
        return _some(read_lines(path), path)
    column, _, value = condition.partition("=")
    rows = read_rows(path)
    for name in ("prompt", *([column] if condition else [])):
        if rows and name not in rows[0]:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(rows[0])}.")
    return _some(
        [str(row["prompt"]) for row in rows if not condition or str(row[column]) == value], path
    )


def _some(prompts: list[str], path: Path) -> list[str]:
    if not (kept := [prompt for prompt in prompts if prompt.strip()]):
        raise UserError(f"{path} holds no such prompt; check the file, the column and its value.")
    return kept


def check_sources(sources: Mapping[str, Sequence[str]], what: str) -> None:
    """Raise unless there is a source, and a prompt in each; ``what`` says what is compared."""
    if not sources or not all(map(len, sources.values())):
        raise UserError(
            f"{what} on prompts of one source or more, none of them empty; got "
            f"{ {name: len(prompts) for name, prompts in sources.items()} }. Give prompts by name."
        )
