"""The one exception type that says: the input is wrong, and here is what to do about it."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class UserError(ValueError):
    """A mistake in what was asked for; its message says what, got, expected, and the remedy.

    Everything that ``ss_lens`` raises on purpose is a ``UserError``, so a caller can tell a wrong
    input from a defect: the command line prints the former in one line and exits with 2.
    """


class NotApplicable(UserError):
    """What a method cannot do with the data or the model that it was given; a finding about it.

    A sweep reports it as the result of an arm and measures the others: 24 sites, or a site of block
    20, may be had on one of its models and not on another. A missing package, a damaged file or an
    argument out of its range on every model is a plain :class:`UserError`, which ends the sweep.
    """


class Unavailable(UserError):
    """A model that cannot be had on this machine, though nothing is wrong with what was asked for.

    Raised where no source of a registered model delivers it (no network, none that answers, none
    with the pinned weights), and where memory or disk is too small for it. A caller may fall back
    on a smaller model. Damaged files and unknown names are plain :class:`UserError`\\ s.
    """
