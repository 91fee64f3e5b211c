"""What a finished run, sweep or ablation says of itself: the facts, and the first rows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ss_lens.core.shown import listed, table

ROWS, COLUMNS = 8, 9
"""Of a table in a notebook."""


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
