"""Checks of numbers and literals; each error names the argument or field and what it takes."""

from __future__ import annotations

import math

from ss_lens.core.errors import UserError


def check_whole(name: str, value: object, at_least: int) -> None:
    """Raise unless ``value`` is an ``int`` (no ``bool``) from ``at_least`` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"{name} must be a whole number from {at_least} on; got {value!r}.")


def check_at_least(name: str, value: int, least: int = 1) -> None:
    """Raise if ``value`` is below ``least``."""
    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value}.")


def check_positive(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{name} must be a finite number above 0; got {value!r}.")


def check_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def check_seed(what: str, value: object) -> None:
    """Raise unless ``value`` is a whole number; ``what`` is the thing that cannot do without."""
    if value is None:
        raise UserError(f"a {what} needs a seed, so that it can be repeated; pass seed=0.")
    check_whole("seed", value, at_least=0)
