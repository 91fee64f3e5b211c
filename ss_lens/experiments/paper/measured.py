"""What the stages of a paper run found, in the columns that its tables go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.experiments.grid import Arm
from ss_lens.experiments.paper.plan import Variant
from ss_lens.experiments.sweeps.result import SweepResult


def under_refusals_names(found: SweepResult, measures: Measures) -> SweepResult:
    """A sweep of another behaviour with the columns that the stages of a paper run go by."""
    if measures.is_refusal:
        return found
    return replace(
        found,
        table=_as_refusal(found.table, measures),
        unsteered=_as_refusal(found.unsteered, measures),
    )


def _as_refusal(rows: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    renamed = {measures.score: REFUSAL.score, str(measures.mass): "opening_mass"}
    own = rows.rename(columns=renamed)
    if measures.shown == REFUSAL.shown:
        return own
    if not measures.reads:
        return own.assign(refused=own[REFUSAL.score] > 0)
    if measures.shown not in own:  # a pass over the prompts alone
        return own
    return own.assign(refused=own[measures.shown].fillna(0) > 0)


def under_own_names(table: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    """A table as it is written: what was called refusal under the behaviour's own names."""
    if measures.is_refusal:
        return table
    names = {
        REFUSAL.score: measures.score,
        f"{REFUSAL.score}_at_0": f"{measures.score}_at_0",
        REFUSAL.shown: measures.shown,
        "answered": "absent",
    }
    table = table.rename(columns=names)
    return table.replace({"metric": names}) if "metric" in table else table


@dataclass(frozen=True)
class Chosen:
    """What dev chose for a variant.

    Attributes:
        admissible: whether few enough of its dev answers collapse; else it is the best by score.
        dev: the row of :attr:`ss_lens.AngleChoice.dev`.
    """

    variant: Variant
    arm: Arm
    angle_deg: float
    admissible: bool
    dev: Mapping[str, float]

    @property
    def table(self) -> str:
        return self.variant.table


@dataclass(frozen=True, eq=False)
class Measured:
    """What the stages of a paper run found.

    Attributes:
        scan: one pass over dev at all angles, of all variants.
        others: the same for rules of selection and the template variant.
        chosen: in the order of the plan.
        tested: the chosen cells on test.
        nulls: one pass over the harmful test prompts per random draw, by kind.
        items: of capability, by method and ``unsteered``; empty where it was not measured.
        judged: from :func:`ss_lens.experiments.paper.judged.judged_answers`.
        facts: numbers that stand alone.
    """

    scan: SweepResult
    others: SweepResult
    chosen: Sequence[Chosen]
    tested: SweepResult
    nulls: Mapping[str, SweepResult]
    items: Mapping[str, pd.DataFrame]
    judged: pd.DataFrame
    facts: Mapping[str, Any]


def means_by_angle(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of each class at each angle, over ``n`` prompts."""
    groups = rows.groupby(["prompt_class", "angle_deg"], sort=True)
    means = groups.agg({"refusal_score": "mean", "opening_mass": "mean", "prompt": "size"})
    return means.rename(columns={"prompt": "n"}).reset_index()


def rows_of(table: pd.DataFrame, arm: Arm, angle: float | None = None) -> pd.DataFrame:
    """The rows of one arm of a sweep, at one angle or all."""
    here = pd.Series(True, index=table.index)
    for name, value in asdict(arm).items():
        here &= table[name].isna() if value is None else table[name] == value
    if angle is not None:
        here &= table["angle_deg"] == angle
    return table.loc[here]
