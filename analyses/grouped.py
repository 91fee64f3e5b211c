"""Groups of a table by several columns, which may be none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pandas as pd


def groups(
    table: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Each group's values of ``by`` and its rows, in order of appearance; NaN is a value too."""
    if not by:
        yield (), table
        return
    for place, rows in table.groupby([*by], sort=False, dropna=False):
        yield cast("tuple[Any, ...]", place), rows
