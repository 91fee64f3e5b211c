"""Checks of types, numbers and literals; each error names the argument and what it takes."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Collection, Hashable, Iterable, Mapping, Set
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar, cast

from ss_lens.core.errors import UserError

Value = TypeVar("Value", bound=Hashable)


def check_is(name: str, value: object, kinds: tuple[type, ...], expected: str) -> None:
    """Raise unless ``value`` is an instance of one of ``kinds``.

    A class in place of a value is distinguished, since that is how an argument list gets lost. A
    ``bool`` is no ``int`` here.

    Args:
        name: the argument, as the caller wrote it.
        value: what was passed.
        kinds: the types that it may have; ``type(None)`` where ``None`` is allowed.
        expected: what it must be and how to make one, for instance
            ``"an operator such as RotateBy(angle_deg=90)"``.

    >>> check_is("model", "qwen", (Path,), "a model from ss_lens.load_model(...)")
    Traceback (most recent call last):
    ss_lens.core.errors.UserError: model must be a model from ss_lens.load_model(...); got 'qwen'.
    """
    if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
        return
    if isinstance(value, type) and issubclass(value, kinds):
        raise UserError(
            f"{name} must be {expected}; got the class {value.__name__} itself, which is no "
            f"value yet. Write {_call(value)}."
        )
    raise UserError(f"{name} must be {expected}; got {described(value)}.")


_PLAIN = (str, bytes, int, float, complex, list, tuple, dict, Path)


def described(value: object) -> str:
    """A value as an error names it: plain values as they print, shortened; others by their type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, _PLAIN):
        text = " ".join(repr(value).split())
        return text if len(text) <= 60 else f"{text[:59]}…"
    kind = type(value).__name__
    return f"{'an' if kind[:1] in 'AEIOUaeiou' else 'a'} {kind}"


def _call(kind: type) -> str:
    """How a value of ``kind`` is written, with the arguments that have no default."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # some built-in types have none
        return f"{kind.__name__}(...)"
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in named]
    return f"{kind.__name__}({', '.join(f'{name}=...' for name in needed)})"


def is_finite(number: float | int) -> bool:
    """Whether a number is neither NaN nor infinite, nor an integer beyond the largest float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def first_repeated(values: Iterable[Value]) -> Value | None:
    """The first value that stands there a second time; ``None`` where none does.

    >>> first_repeated([3, 1, 2, 1, 3])
    1
    """
    seen: set[Value] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def check_whole(name: str, value: object, at_least: int) -> None:
    """Raise unless ``value`` is an ``int`` (no ``bool``) from ``at_least`` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(
            f"{name} must be a whole number from {at_least} on; got {described(value)}."
        )


def check_at_least(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number, NumPy's included, of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UserError(
            f"{name} must be a whole number of at least {least}; got {described(value)}. Write an "
            f"integer such as {name}={max(least, 16)}."
        )
    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value}.")


def check_texts(name: str, texts: object) -> None:
    """Raise unless ``texts`` is a sequence of texts; one text alone is not."""
    if isinstance(texts, str):
        raise UserError(f"{name} must be a list; got one text. Write [{texts[:40]!r}].")
    if not isinstance(texts, Iterable):
        raise UserError(f"{name} must be a list of texts; got {described(texts)}. Write ['…'].")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"{name} must be a list of texts; got {described(text)} at place {index}. Write '' "
                "where there is none."
            )


def check_positive(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (is_finite(number) and number > 0):
        raise UserError(f"{name} must be a finite number above 0; got {described(value)}.")


def check_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}; got {described(value)}.")


def check_flag(name: str, value: object) -> None:
    """Raise unless ``value`` is ``True`` or ``False``."""
    check_is(name, value, (bool,), "True or False")


def check_share(name: str, value: object) -> None:
    """Raise unless ``value`` is a number from 0 to 1."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= 1:
        raise UserError(f"{name} is a share, between 0 and 1; got {described(value)}.")


def check_path(name: str, value: object) -> None:
    """Raise unless ``value`` is a path, or a text that a file system can hold as one."""
    check_is(name, value, (str, os.PathLike), "a path such as 'runs/refusal'")
    try:
        encoded = os.fsencode(value)  # type: ignore[arg-type]  # checked above
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise UserError(f"{name} must be a path; got {described(value)}, which no file can have.")


def check_numbers(name: str, value: object) -> None:
    """Raise unless ``value`` is a list of finite numbers, at least one."""
    unordered = isinstance(value, str | bytes | Set | Mapping)
    numbers = [*value] if isinstance(value, Collection) and not unordered else []
    if not numbers or not all(
        isinstance(one, Real) and not isinstance(one, bool) and is_finite(cast(float, one))
        for one in numbers
    ):
        raise UserError(
            f"{name} must be a list of finite numbers such as [0, 90]; got {described(value)}."
        )


def check_seed(what: str, value: object) -> None:
    """Raise unless ``value`` is a whole number; ``what`` is the thing that needs a seed."""
    if value is None:
        raise UserError(f"a {what} needs a seed, so that it can be repeated; pass seed=0.")
    check_whole("seed", value, at_least=0)
