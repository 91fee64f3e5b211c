"""What the dial shows of a stored sweep: one answer with its scores, looked up in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from ss_lens import SweepResult
from ss_lens.core.checks import check_is
from ss_lens.core.errors import UserError
from ss_lens.experiments.grid import ARM_COLUMNS
from ss_lens.geometry.strengths import reduced
from ss_lens.scoring.registry import ROW, all_columns

OF_PROMPT = ("model", "dataset", "part", "prompt_class", "prompt_index", "prompt")
"""What says which prompt a row is of, as far as the table has it."""


@dataclass(frozen=True, eq=False)
class Stored:
    """The rows of a sweep, and what the dial can be set to.

    Attributes:
        rows: one per arm, prompt and angle.
        unsteered: one per prompt; empty where the sweep has none.

    Raises:
        UserError: a table without prompts, angles and answers, or without rows.
    """

    rows: pd.DataFrame
    unsteered: pd.DataFrame

    def __post_init__(self) -> None:
        missing = [name for name in (*ROW, "response") if name not in self.rows]
        if missing:
            raise UserError(
                f"the table has no column {', '.join(missing)}; give that of sweep_angles(...), of "
                "load_sweep(...) or the responses of load_run(...)."
            )
        if self.rows.empty:
            raise UserError("the table has no steered row; sweep at least one angle.")

    @classmethod
    def of(cls, sweep: SweepResult | pd.DataFrame) -> Stored:
        """Of a finished sweep, or of a table of answers; a missing angle is an unsteered row."""
        expected = "load_sweep(...), or a table such as sweep_angles(...)"
        check_is("sweep", sweep, (SweepResult, pd.DataFrame), expected)
        if isinstance(sweep, SweepResult):
            return cls(sweep.table, sweep.unsteered)
        if "angle_deg" not in sweep:
            return cls(sweep, sweep.iloc[:0])
        is_steered = sweep["angle_deg"].notna()
        rows = sweep.loc[is_steered]
        angles = [reduced(angle) for angle in rows["angle_deg"].astype(float)]
        return cls(rows.assign(angle_deg=angles), sweep.loc[~is_steered])

    @property
    def choices(self) -> dict[str, list[str]]:
        """Column → values, for what differs among the arms."""
        found = {
            name: [*dict.fromkeys(map(_text, self.rows[name]))]
            for name in ARM_COLUMNS
            if name in self.rows
        }
        return {name: values for name, values in found.items() if len(values) > 1}

    @property
    def prompts(self) -> pd.DataFrame:
        """Each prompt with what says of which part and class it is, in the order of the table."""
        kept = [name for name in OF_PROMPT if name in self.rows and name not in self.choices]
        return self.rows.filter(kept).drop_duplicates().reset_index(drop=True)

    @property
    def angles_deg(self) -> list[float]:
        """All angles of the table; an arm may have fewer."""
        return sorted({float(angle) for angle in self.rows["angle_deg"]})

    def look_up(
        self, place: int, angle_deg: float | int, chosen: Mapping[str, str]
    ) -> dict[str, Any]:
        """What the dial shows of one prompt, angle and arm.

        Args:
            place: of the prompt in :attr:`prompts`.
            angle_deg: one of :attr:`angles_deg`.
            chosen: a value of each of :attr:`choices`.

        Returns:
            ``text``, ``unsteered`` (``None`` where the sweep has none), ``scores`` (heading →
            number), and ``fold``: whether the prompt is of the positive class, whose answers are
            folded away.

        Raises:
            UserError: there is no such prompt, or it was not measured there.
        """
        prompts = self.prompts
        if not 0 <= place < len(prompts):
            raise UserError(
                f"there is no prompt {place}; the sweep has {len(prompts)}. Choose one of them."
            )
        prompt = prompts.iloc[place]
        here = _same(self.rows, prompt)
        for name, value in chosen.items():
            if name in self.choices:
                here &= self.rows[name].map(_text) == value
        of_arm = self.rows.loc[here]
        found = of_arm.loc[of_arm["angle_deg"] == angle_deg]
        if found.empty:
            angles = ", ".join(f"{angle:g}" for angle in sorted({*of_arm["angle_deg"]}))
            raise UserError(
                f"the sweep has no answer to this prompt at {angle_deg:g}° with this choice; "
                + (f"measured: {angles}°." if angles else "choose another combination.")
            )
        plain = self.unsteered.loc[_same(self.unsteered, prompt)]
        for name, value in chosen.items():
            if name in plain and name in self.choices:
                plain = plain.loc[plain[name].map(_text) == value]
        return {
            "text": str(found["response"].iloc[0]),
            "unsteered": None if plain.empty else str(plain["response"].iloc[0]),
            "scores": _scores(found.iloc[0]),
            "fold": prompt.get("prompt_class") == "positive",
        }


def _same(rows: pd.DataFrame, prompt: pd.Series) -> pd.Series:
    """Which rows are of the prompt, by all that they say of theirs."""
    here = pd.Series(True, index=rows.index)
    for name, value in prompt.items():
        if name in rows:
            here &= rows[cast("str", name)] == value
    return here


def _scores(row: pd.Series) -> dict[str, float]:
    """The numbers that are printed in tables, by their headings; a missing one is left out."""
    headed = {name: column.heading for name, column in all_columns().items() if column.label}
    values = row.to_dict()
    numbers = {heading: float(values[name]) for name, heading in headed.items() if name in values}
    return {heading: value for heading, value in numbers.items() if not math.isnan(value)}


def _text(value: object) -> str:
    return "none" if value is None or value is pd.NA or value != value else str(value)
