"""Rubrics: the instructions of a language-model judge, in files that anybody can read."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ss_lens.core.errors import UserError

OF_REPLIES, OF_WORDS = "rubrics", "rubrics_of_words"
"""The folders of rubrics that ask for a reply to be parsed, and of those that ask for a word."""
_PROMPT, _ANSWERS = "{prompt}", ("{response}", "{answer}")
_PLACES = re.compile("|".join(map(re.escape, (_PROMPT, *_ANSWERS))))


def read_rubric(name: str, kind: str = OF_REPLIES) -> str:
    """The text of a rubric: of one that comes with the package, by name; of a file, by path; or
    the text itself, which has ``{prompt}`` in it.

    It must contain ``{prompt}`` and ``{response}`` (or ``{answer}``), once each or more often.

    Args:
        name: the rubric.
        kind: :data:`OF_REPLIES` or :data:`OF_WORDS`, of those that come with the package.

    Raises:
        UserError: there is no such rubric, or it lacks a place.
    """
    text = name if _PROMPT in name else _stored(name, kind)
    shown = repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…")
    if _PROMPT not in text:
        raise UserError(f"the rubric {shown} has no {_PROMPT}; put it where the text belongs.")
    if not any(place in text for place in _ANSWERS):
        place = _ANSWERS[kind == OF_WORDS]
        raise UserError(f"the rubric {shown} has no {place}; put it where the text belongs.")
    return text


def beside(name: str, folder: Path, kind: str = OF_REPLIES) -> str:
    """The path of a rubric in ``folder``; what is no file there stays as it is."""
    if _PROMPT in name or name in _packaged(kind):
        return name
    path = folder / Path(name).expanduser()
    return str(path) if path.is_file() else name


_LONGEST = 80
"""Characters of a rubric that a message repeats."""


def fill(rubric: str, prompt: str, response: str) -> str:
    """The rubric with both texts in their places; braces inside the texts stay as they are."""
    return _PLACES.sub(lambda match: prompt if match[0] == _PROMPT else response, rubric)


def _stored(name: str, kind: str) -> str:
    known = _packaged(kind)
    folder = files("ss_lens.judges") / kind
    source = folder / f"{name}.md" if name in known else Path(name).expanduser()
    try:
        return source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the rubric {name[:_LONGEST]!r} cannot be read ({type(error).__name__}); use "
            f"{', '.join(known)}, or the path of a text file, or a text with {_PROMPT} and "
            f"{_ANSWERS[kind == OF_WORDS]} in it."
        ) from error


def _packaged(kind: str) -> list[str]:
    folder = files("ss_lens.judges") / kind
    return sorted(entry.name.removesuffix(".md") for entry in folder.iterdir())
