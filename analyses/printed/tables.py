"""Tables for print: LaTeX with booktabs, and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

LONG = 40
"""Rows from which a table may break across pages."""
AS_LATEX = str.maketrans(
    {
        **{"θ": r"$\theta$", "°": r"$^\circ$", "‖": r"$\|$", "×": r"$\times$", "²": "$^2$"},
        **{"−": "$-$", "–": "--", "’": "'", "≤": r"$\le$", "≥": r"$\ge$", "†": r"$\dagger$"},
        **{"↓": r"$\downarrow$", "↑": r"$\uparrow$"},
    }
)
ESCAPES = str.maketrans(
    {
        **{sign: rf"\{sign}" for sign in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    }
)


def latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table for a preamble with ``booktabs``, and ``longtable`` if it is long.

    Args:
        table: of texts and numbers that are written as they are.
        caption: in words.
        label: for references: ``tab:LABEL``.
    """
    cells = table.map(_escaped)
    cells.columns = [_escaped(name) for name in table.columns]
    text = cells.to_latex(
        index=False,
        escape=False,  # done above, with the signs that TeX has no letter for
        caption=_escaped(caption),
        label=f"tab:{label}",
        longtable=len(table) > LONG,
        column_format="l" + "r" * (len(table.columns) - 1),
    )
    start = r"\begin{table}"
    return text.replace(start, f"{start}\n\\centering\n\\footnotesize", 1)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def negative(text: str) -> str:
    """The text with minus signs before its numbers, where a format has put hyphens."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def _escaped(value: object) -> str:
    return negative(str(value)).translate(ESCAPES).translate(AS_LATEX)
