"""Tokens as figures show them."""

from __future__ import annotations

from html import escape

LONGEST = 14
"""Characters of a token that are shown."""


def legible(token: str) -> str:
    """A token with its white space made visible, cut, and safe as HTML.

    >>> legible(" a\\n")
    '·a⏎'
    """
    visible = token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    cut = visible if len(visible) <= LONGEST else f"{visible[: LONGEST - 1]}…"
    return escape(cut, quote=False)
