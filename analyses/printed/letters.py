"""Tokens in print: cut, with a box for what the font lacks, in letters that stand on any shade."""

from __future__ import annotations

from html import unescape

from matplotlib.font_manager import FontProperties, findfont, get_font

from analyses.tokens import legible

LACKING = "▯"
DARK = 0.77
"""Where on the diverging scale, from 0 to 1, letters turn white."""
LACKING_TOLD = f"{LACKING} stands for a letter that the font lacks."


def on_shade(place: float) -> str:
    """The colour of letters over a place on the diverging scale."""
    return "white" if place > DARK else "black"


def drawable(token: str, longest: int) -> str:
    """A token as a figure shows it, cut, without letters that the font lacks.

    >>> drawable(" sorry", 12), drawable("好", 12)
    ('·sorry', '▯')
    """
    known = get_font(findfont(FontProperties(family="DejaVu Sans")))
    shown = "".join(
        letter if letter != "$" and known.get_char_index(ord(letter)) else LACKING
        for letter in unescape(legible(token))
    )
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def in_ascii(text: str) -> str:
    """What LaTeX's own fonts have: of other letters only those that tables know how to write."""
    return "".join(sign if sign.isascii() or sign in "·⏎⇥…" else LACKING for sign in text)
