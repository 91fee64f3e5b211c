"""Tokens as figures show them."""

from __future__ import annotations

from html import escape

DIVERGING = ("#E4F1FB", "#BFD9EC", "#ADBFCB", "#B0B0B0", "#C9925F", "#A3541C", "#5C2200")
"""From −1 to 1: it darkens all the way, so that the two ends differ in grey too."""
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
