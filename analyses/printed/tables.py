"""Tables for print: LaTeX with booktabs, and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

LONG = 40
"""Rows from which a table may break across pages."""
PAGE = 112
"""Characters at LaTeX's ``\\footnotesize`` that fit side by side into two columns of a page."""
COLUMN = 52
"""Those that fit into one column; a wider table spans both (``table*``)."""
BETWEEN = 3
"""Characters that fit into the space between two columns of a table."""
AS_LATEX = str.maketrans(
    {
        **{"θ": r"$\theta$", "°": r"$^\circ$", "‖": r"$\|$", "×": r"$\times$", "²": "$^2$"},
        **{"−": "$-$", "–": "--", "’": "'", "≤": r"$\le$", "≥": r"$\ge$", "†": r"$\dagger$"},
        **{"↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\to$", "·": r"$\cdot$"},
        **{"⏎": r"$\hookleftarrow$", "⇥": r"$\mapsto$", "…": r"\ldots{}", "▯": r"\rule{1ex}{1ex}"},
        **{"<": r"$<$", ">": r"$>$", "|": r"$|$"},
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
    kind = "table*" if width_of(table) > COLUMN else "table"
    text = text.replace(r"\end{table}", rf"\end{{{kind}}}")
    start = rf"\begin{{{kind}}}"
    return text.replace(r"\begin{table}", f"{start}\n\\centering\n\\footnotesize", 1)


def latex_parts(table: pd.DataFrame, caption: str, label: str) -> str:
    """One table of :func:`latex`, or several below each other that fit the page."""
    first, *others = columns_that_fit(table)
    texts = [latex(first, caption, label)]
    for number, part in enumerate(others, start=2):
        texts.append(latex(part, f"{caption} (continued)", f"{label}-{number}"))
    return "\n".join(texts)


def columns_that_fit(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The table in parts of about as many columns, none wider than :data:`PAGE` if it can be.

    The first column stands in each of them.
    """
    first, names = table.columns[0], [*table.columns[1:]]
    for n_parts in range(1, len(names) + 1):
        parts = [
            table.filter([first, *some])
            for some in np.array_split(np.array(names, object), n_parts)
        ]
        if all(width_of(part) <= PAGE for part in parts):
            return parts
    return [table.filter([first, name]) for name in names] or [table]


def width_of(table: pd.DataFrame) -> int:
    """Characters that the longest cells take side by side."""
    longest = [max(map(len, map(str, [name, *table[name]]))) for name in table]
    return sum(longest) + BETWEEN * (len(longest) - 1)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def negative(text: str) -> str:
    """The text with minus signs before its numbers, where a format has put hyphens."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def _escaped(value: object) -> str:
    return negative(str(value)).translate(ESCAPES).translate(AS_LATEX)
