"""A finished sweep: what it holds, how it shows itself, and its files."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from ss_lens.core.checks import check_path
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_replaceable
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.core.shown import card, in_lines, listed
from ss_lens.experiments.cells import CellStore, read_table, write_table
from ss_lens.experiments.choose_angle import AngleChoice
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.grid import ARM_COLUMNS, Arm
from ss_lens.experiments.summaries import degrees, first_rows, judges, varied
from ss_lens.experiments.sweeps.tables import GROUP_COLUMNS, UNSTEERED_COLUMNS, by_cell, typed
from ss_lens.geometry.strengths import reduced
from ss_lens.judges.agreement.known import refused_by
from ss_lens.scoring.refusal import BY_PHRASES, counts_by_phrases
from ss_lens.scoring.registry import columns_of

_TABLES = ("table", "groups", "unsteered")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmChoice:
    """The angle of one arm."""

    arm: Arm
    choice: AngleChoice


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult:
    """A finished sweep, as its folder holds it.

    Attributes:
        table: one row per prompt and angle: what the arm is (``model``, ``dataset``, ``operator``,
            ``selection``, ``plane``, ``labels``, ``seed``), ``part`` and ``prompt_class``,
            ``prompt_index``, ``prompt``, ``angle_deg`` (from 0 to below 360), ``response``, and the
            columns of each score (:mod:`ss_lens.scoring.registry`).
        unsteered: the same for the model without steering: one row per prompt, with ``angle_deg``
            missing, and nothing of what an arm is but ``model`` and ``dataset``. It is not the row
            at 0 degrees of an operator that rotates to an angle.
        groups: one row per cell group: its ``key`` in the store, the ``steered_sites`` (text with
            commas), their number ``n_sites``, and the ``problem`` of an arm that could not be
            calibrated and has no rows in ``table``.
        choices: the angle of each arm, where the configuration asks for one.
        shown_by: the judge that says ``shown``, and its measured agreement with people when the
            sweep was run; empty where no judge does.
    """

    config: SweepConfig
    table: pd.DataFrame
    groups: pd.DataFrame
    choices: tuple[ArmChoice, ...]
    unsteered: pd.DataFrame
    shown_by: str = ""

    def __repr__(self) -> str:
        return in_lines(self._title, self._facts)

    def _repr_html_(self) -> str:
        cells = by_cell(self.table)
        return card(self._title, self._facts, first_rows(cells, GROUP_COLUMNS))

    @property
    def refused_by(self) -> str:
        """Who says ``refused``, and its measured agreement with people; empty without answers."""
        measured = "refused" in self.table
        return refused_by(counts_by_phrases(self.table)) if measured else ""

    @property
    def _title(self) -> str:
        arms = self.groups.drop_duplicates([*ARM_COLUMNS])
        return f"Sweep of {len(arms)} arms: {len(self.table)} rows, one per prompt and angle"

    @property
    def _facts(self) -> dict[str, str]:
        scores = [name for score in self.config.scores for name in columns_of(score)]
        problems = self.groups.query("problem.notna()").drop_duplicates([*ARM_COLUMNS])
        arms = varied(self.groups, ARM_COLUMNS)
        differing = [f"{name} ({values})" for name, values in [*arms.items()][1:]]
        return {
            "alike": arms["in all rows"],
            "arms differ in": listed(differing) or "nothing",
            "parts": listed([*self.table["part"].unique(), *self.table["prompt_class"].unique()]),
            "angles": degrees(self.table["angle_deg"].tolist()),
            "scores": listed(scores, most=8),
            "unsteered": f"{len(self.unsteered)} rows",
            "chosen on dev": listed([f"{c.choice}" for c in self.choices], most=2) or "nothing",
            "refused by": "not measured",
            **judges(self),
            "not computed": listed(problems["problem"].tolist(), most=2) or "nothing",
        }


def load_sweep(folder: Path | str) -> SweepResult:
    """The result of the last sweep that was finished in ``folder``.

    Raises:
        UserError: no sweep, none that is finished, damaged, or of another format.
    """
    check_path("folder", folder)
    cells = CellStore(Path(folder))
    cells.check_format()
    path = cells.folder / "result"
    if not path.exists():
        raise UserError(f"the sweep at {folder} is not finished; run it again, which resumes it.")
    values = read_sealed_json(
        path / "sweep.json",
        "result of the sweep",
        unsealed={"config", "choices"},
        remedy="run the sweep again, which is quick",
    )
    # Results of earlier versions have no digests, and no rows of the unsteered model.
    digests = values.get("tables", {"table": None, "groups": None})
    read = {name: read_table(path / f"{name}.parquet", digest) for name, digest in digests.items()}
    found = {name: table for name, table in read.items() if table is not None}
    if len(found) < len(read):
        raise UserError(f"the result at {path} is damaged; run the sweep again, which is quick.")
    table = typed(found["table"])
    if counts_by_phrases(table):
        logger.info("the result at %s %s; run the sweep again, which is quick", path, BY_PHRASES)
    return SweepResult(
        SweepConfig(**values["config"]),
        table.assign(angle_deg=table["angle_deg"].astype(float).map(reduced)),
        typed(found["groups"]),
        tuple(
            ArmChoice(Arm(**made["arm"]), AngleChoice.from_json(made["choice"]))
            for made in values["choices"]
        ),
        found["unsteered"] if "unsteered" in found else table.iloc[:0].filter(UNSTEERED_COLUMNS),
        values.get("shown_by", ""),  # earlier versions did not say
    )


def save(result: SweepResult, cells: CellStore) -> None:
    """Write the result beside its cells, all at once."""
    choices = [
        {"arm": asdict(made.arm), "choice": made.choice.as_json()} for made in result.choices
    ]
    with cells.exclusive():
        check_result(cells)
        with atomic_path(cells.folder / "result") as temporary:
            temporary.mkdir()
            digests = {
                name: write_table(temporary / f"{name}.parquet", getattr(result, name))
                for name in _TABLES
            }
            write_sealed_json(
                temporary / "sweep.json",
                {
                    "config": result.config.model_dump(mode="json"),
                    "choices": choices,
                    "tables": digests,
                    "refused_by": result.refused_by,
                    **({"shown_by": result.shown_by} if result.shown_by else {}),
                },
            )


def check_result(cells: CellStore) -> None:
    """Refuse to replace a folder that holds a file of the user's."""
    names = {"sweep.json", *(f"{name}.parquet" for name in _TABLES)}
    check_replaceable(cells.folder / "result", names, "result of a sweep")
