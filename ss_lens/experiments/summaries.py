"""What a finished run, sweep or ablation says of itself: the facts, and the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import pandas as pd

from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.readers import JudgedBy
from ss_lens.core.shown import listed, table
from ss_lens.judges.agreement.known import judged_by

ROWS, COLUMNS = 8, 9
"""Of a table in a notebook."""


@runtime_checkable
class Read(Protocol):
    """A result whose tables say which answers refuse, or show another behaviour."""

    @property
    def refused_by(self) -> str: ...

    @property
    def shown_by(self) -> str: ...


def read_by(result: Read) -> dict[str, str]:
    """Who says ``refused`` and who says ``shown``; without what no table of the result has."""
    found = {"refused": result.refused_by, "shown": result.shown_by}
    return {column: by for column, by in found.items() if by}


def judges(result: Read) -> dict[str, str]:
    """The same as facts: ``refused by`` and ``shown by``."""
    return {f"{column} by": by for column, by in read_by(result).items()}


def shown_by(behaviour: Behaviour | None) -> str:
    """The judge that reads the answers, with its measured agreement; empty where none does.

    Raises:
        UserError: a judge whose rubric cannot be read.
    """
    shown = None if behaviour is None else behaviour.shown
    return judged_by(shown.judge) if isinstance(shown, JudgedBy) else ""


def degrees(angles: Sequence[float | int]) -> str:
    """The angles of a scan, the first few and how many more."""
    return listed([f"{angle:g}°" for angle in sorted(set(angles))], most=8)


def varied(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """The values of each of the columns that has more than one, and what is alike in all rows."""
    values = {name: [str(v) for v in rows[name].dropna().unique()] for name in names}
    alike = [f"{name} {found[0]}" for name, found in values.items() if len(found) == 1]
    told = {name: listed(found) for name, found in values.items() if len(found) > 1}
    return {"in all rows": listed(alike, most=len(alike)) or "nothing", **told}


def first_rows(rows: pd.DataFrame, keys: Sequence[str]) -> str:
    """An HTML table of the first rows, without key columns that are the same in all of them."""
    said = [name for name in keys if name in rows and rows[name].astype(str).nunique() > 1]
    columns = [*said, *(name for name in rows if name not in keys)][:COLUMNS]
    shown = rows[columns].head(ROWS).astype(object).where(rows[columns].head(ROWS).notna(), "")
    caption = f"{len(shown)} of {len(rows)} rows, {len(columns)} of {rows.shape[1]} columns"
    return table([str(name) for name in columns], shown.to_numpy().tolist(), caption=caption)
