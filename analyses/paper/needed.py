"""What tables of a paper run must hold to be judged: those of earlier versions lack some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from ss_lens import UserError
from ss_lens.experiments.paper.plan import FULL, NULLS, PUBLISHED, UNSTEERED

COLUMNS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("methods", "ablations"),
        (
            *("variant", "prompt_class", "metric", "n", "mean", "low", "high", "n_pairs"),
            *("difference", "difference_low", "difference_high", "angle_deg", "operator"),
            *("n_sites", "admissible"),
        ),
    ),
    "curves": ("table", "variant", "prompt_class", "draw", "angle_deg", "n", "refusal_score"),
    "nulls": ("null", "refusal_score", "opening_mass"),
    "null_ranks": (
        *("null", "angle_deg", "method", "unsteered", "draws", "draw_mean", "draw_low"),
        *("draw_high", "p_value", "p_value_whole", "method_mass", "unsteered_mass"),
        *("draw_mass_low", "draw_mass_high", "draws_as_low", "draws_as_low_whole"),
    ),
    "selection": ("rule", "blocks", "problem"),
    "facts": ("fact", "value"),
}
"""The columns that are read, by the table."""
ROWS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("methods", "variant"): (*PUBLISHED, UNSTEERED),
    ("ablations", "variant"): (FULL, UNSTEERED, "all sites", "norm not kept", "random second axis"),
    ("null_ranks", "null"): NULLS,
    ("selection", "rule"): ("site",),
    ("facts", "fact"): (
        *("model", "n_layers", "n_train", "dev", "test", "max_new_tokens", "angles_deg"),
        *("norm_change_RotateTo", "cos_b1_wrapped", "shared_sites_wrapped"),
    ),
}
"""The rows that are looked up, by the table and the column of their names."""


def check_complete(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Refuse tables that lack what this version reads.

    Raises:
        UserError: a column or a row is missing, or they are of another behaviour than refusal.
    """
    if (tables["facts"].get("fact", pd.Series(dtype=object)) == "behaviour").any():
        raise UserError(
            f"the tables in {folder} are of another behaviour than refusal, which the paper's "
            "claims are about; expected a run on refusal. Read its tables as they are."
        )
    if lacking := [*_lacking(tables)]:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(
            f"the tables in {folder} lack {lacking[0]}{more}, which this version reads: they were "
            "written by an earlier one. Run the same `ss-lens paper` again, which makes them from "
            "what it keeps."
        )


def _lacking(tables: Mapping[str, pd.DataFrame]) -> Iterable[str]:
    for name, columns in COLUMNS.items():
        yield from (f"the column {c!r} of {name}.csv" for c in columns if c not in tables[name])
    for (name, column), wanted in ROWS.items():
        found = {*map(str, tables[name][column])} if column in tables[name] else {*wanted}
        yield from (f"the row {row!r} of {name}.csv" for row in wanted if row not in found)
