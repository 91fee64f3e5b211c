"""The tables of a sweep: its cells put together, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import pandas as pd

from ss_lens.core.errors import UserError
from ss_lens.experiments.answers import OF, scored
from ss_lens.experiments.cells import CellStore, at_angles_in_order
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.grid import ARM_COLUMNS, CellGroup
from ss_lens.experiments.worker import Outcome, finished_rows, unsteered_table
from ss_lens.scoring.registry import ANSWERS, ROW, columns_of

GROUP_COLUMNS = (*ARM_COLUMNS, "part", "prompt_class")
UNSTEERED_COLUMNS = ("model", "dataset", "part", "prompt_class", "prompt_index", "prompt")


def by_cell(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: the means of all scores over its prompts, and their number ``n``.

    Answers that are too short for a score are left out of its mean.
    """
    keys = [*GROUP_COLUMNS, "angle_deg"]
    scores = table.drop(columns=[*keys, "prompt_index"]).select_dtypes(["number", "bool"])
    whole = pd.concat([table.filter(keys), scores], axis=1)
    means = whole.groupby(keys, dropna=False, sort=False).agg("mean")
    sizes = table.groupby(keys, dropna=False, sort=False).agg(n=("prompt", "size"))
    return sizes.join(means).reset_index()


def unsteered_by_class(unsteered: pd.DataFrame) -> pd.DataFrame:
    """One row per model, dataset, part and class: the means of :attr:`SweepResult.unsteered`."""
    keys = [name for name in UNSTEERED_COLUMNS if name not in ROW]
    scores = unsteered.drop(columns=[*keys, "prompt_index"]).select_dtypes(["number", "bool"])
    groups = pd.concat([unsteered.filter(keys), scores], axis=1).groupby(keys, sort=False)
    sizes = unsteered.groupby(keys, sort=False).agg(n=("prompt", "size"))
    return sizes.join(groups.agg("mean")).reset_index()


def joined(
    config: SweepConfig,
    groups: Sequence[CellGroup],
    outcomes: Sequence[Outcome],
    cells: CellStore,
) -> pd.DataFrame:
    """The finished cells of all groups, each row with what its arm is."""
    tables = []
    for group, outcome in zip(groups, outcomes, strict=True):
        if outcome.key is None:
            continue
        rows = group_rows(group, outcome, config.scores_of(group.part), cells)
        for place, (name, value) in enumerate(group.columns.items()):
            rows.insert(place, name, value)
        tables.append(typed(rows))
    return pd.concat(tables, ignore_index=True)


def group_rows(
    group: CellGroup, outcome: Outcome, scores: Sequence[str], cells: CellStore
) -> pd.DataFrame:
    """The finished cells of a group, one row per prompt and angle, with the columns of all scores.

    Args:
        group: which angles.
        outcome: of the group, which is finished.
        scores: what was measured.
        cells: where the cells are.
    """
    assert outcome.key is not None
    parts = []
    for score in scores:
        found = finished_rows(cells, outcome.key, outcome.unsteered, score)
        rows = _cells_of(group, found)
        if score == ANSWERS:
            rows = scored(cells, outcome.key, rows.filter([*ROW, "response", OF]))
        else:
            rows = rows.filter([*ROW, *columns_of(score)])
        parts.append(rows)
    return reduce(lambda a, b: a.merge(b, on=[*ROW], validate="1:1"), parts)


def unsteered_rows(
    config: SweepConfig,
    groups: Sequence[CellGroup],
    outcomes: Sequence[Outcome],
    cells: CellStore,
) -> pd.DataFrame:
    """One row per prompt that was measured, whatever the arms."""
    tables = {}
    for group, outcome in zip(groups, outcomes, strict=True):
        place = {
            "model": group.arm.model,
            "dataset": group.arm.dataset,
            "part": group.part,
            "prompt_class": group.prompt_class,
        }
        if outcome.key is None or outcome.unsteered is None or (*place.values(),) in tables:
            continue
        scores = config.scores_of(group.part)
        prompts = finished_rows(cells, outcome.key, outcome.unsteered, scores[0])
        prompts = prompts.filter([*ROW[:2]]).drop_duplicates().sort_values(by="prompt_index")
        rows = unsteered_table(cells, outcome.unsteered, scores, prompts)
        for column, (name, value) in enumerate(place.items()):
            rows.insert(column, name, value)
        tables[(*place.values(),)] = rows
    return pd.concat([*tables.values()], ignore_index=True)


def _cells_of(group: CellGroup, rows: pd.DataFrame) -> pd.DataFrame:
    """The group's angles, in order; earlier sweeps may have left others."""
    rows = at_angles_in_order(rows, group.angles_deg)
    if rows["angle_deg"].nunique() < len(group.angles_deg):
        raise UserError(
            f"finished cells of {group.arm} are gone; run the same command again, which computes "
            "them."
        )
    return rows


def group_table(groups: Sequence[CellGroup], outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per cell group: what it is, where it steers, and why it has no cells."""
    rows = [
        {
            **group.columns,
            "key": outcome.key,
            "steered_sites": ",".join(outcome.steered_sites),
            "n_sites": len(outcome.steered_sites),
            "problem": outcome.problem,
        }
        for group, outcome in zip(groups, outcomes, strict=True)
    ]
    return typed(pd.DataFrame(rows))


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Seeds are whole numbers or missing; without seeds, Parquet would forget which."""
    return table.astype({"seed": "Int64"})
