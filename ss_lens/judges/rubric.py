"""Rubrics: the instructions of a language-model judge, in files that anybody can read."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ss_lens.core.errors import UserError


def read_rubric(name: str) -> str:
    """The text of a rubric: of one that comes with the package, by name, or of a file, by path.

    It must contain ``{prompt}`` and ``{response}``, once each or more often.

    Raises:
        UserError: there is no such rubric, or it lacks a place.
    """
    folder = files("ss_lens.judges") / "rubrics"
    known = sorted(entry.name.removesuffix(".md") for entry in folder.iterdir())
    source = folder / f"{name}.md" if name in known else Path(name).expanduser()
    try:
        text = source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the rubric {name!r} cannot be read ({type(error).__name__}); use "
            f"{', '.join(known)}, or the path of a text file."
        ) from error
    for place in ("{prompt}", "{response}"):
        if place not in text:
            raise UserError(f"the rubric {name!r} has no {place}; put it where the text belongs.")
    return text


def fill(rubric: str, prompt: str, response: str) -> str:
    """The rubric with both texts in their places; braces inside the texts stay as they are."""
    texts = {"{prompt}": prompt, "{response}": response}
    return re.sub(r"\{prompt\}|\{response\}", lambda match: texts[match[0]], rubric)
