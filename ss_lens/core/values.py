"""Frozen values as text: ``TopK(k=8)`` is how a choice prints, is stored, and is read back."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from typing import Any

from ss_lens.core.errors import UserError

_LONGEST = 200
"""Characters of a text that a message repeats."""


def read_value(text: str, kinds: Iterable[type], what: str) -> Any:
    """The value that prints as ``text``: the name of one of ``kinds`` and its keyword arguments.

    Only literals are read; nothing is evaluated. The parentheses may be left out where there are
    no arguments.

    >>> from ss_lens.geometry.operators import RotateBy
    >>> read_value("RotateBy(angle_deg=90.0)", [RotateBy], "operator")
    RotateBy(angle_deg=90.0)

    Raises:
        UserError: not of that form, an unknown name, or arguments that the kind does not take.
    """
    named = {kind.__name__: kind for kind in kinds}
    name, arguments = _parsed(text, what, named)
    if name not in named:
        near = difflib.get_close_matches(name, named, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"unknown {what} {_shown(name)}{meant} Use one of {', '.join(named)}.")
    try:
        return named[name](**arguments)
    except (TypeError, OverflowError) as error:
        raise UserError(f"{what} {_shown(text)} does not fit: {error}.") from error


def with_argument(text: str, name: str, value: str) -> str:
    """The same text with another value of one of its arguments.

    >>> with_argument("Judge(rubric='a.md', model='m')", "rubric", "b/a.md")
    "Judge(rubric='b/a.md', model='m')"
    """
    tree = ast.parse(text.strip(), mode="eval")
    assert isinstance(tree.body, ast.Call), "the text was read before"
    for keyword in tree.body.keywords:
        if keyword.arg == name:
            keyword.value = ast.Constant(value)
    return ast.unparse(tree)


def _parsed(text: str, what: str, named: dict[str, type]) -> tuple[str, dict[str, Any]]:
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            values = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(values) == len(node.keywords):
                return node.func.id, values
    # Deep nesting exhausts the parser's stack; TypeError is a dictionary whose key is a list.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise UserError(
        f"{what} {_shown(text)} cannot be read; write it like {next(iter(named))}(name=value)."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
