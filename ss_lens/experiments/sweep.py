"""Sweeps: a grid of cells, each computed once, whoever computes it and however often one stops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path

import pandas as pd

from ss_lens.activations.store import Store
from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import load_behaviour
from ss_lens.core.checks import check_is, check_path
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_replaceable
from ss_lens.core.progress import progress_bar
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.core.shown import card, in_lines, listed
from ss_lens.experiments.answers import OF, scored
from ss_lens.experiments.cells import (
    CellStore,
    at_angles_in_order,
    read_table,
    write_table,
)
from ss_lens.experiments.choose_angle import AngleChoice, choose_angle
from ss_lens.experiments.cluster import finish_on_cluster
from ss_lens.experiments.config import SweepConfig, check_behaviour
from ss_lens.experiments.grid import ARM_COLUMNS, Arm, CellGroup
from ss_lens.experiments.inputs import Workbench
from ss_lens.experiments.summaries import degrees, first_rows, judges, shown_by, varied
from ss_lens.experiments.worker import (
    Outcome,
    finish_groups,
    finished_rows,
    unsteered_table,
)
from ss_lens.geometry.strengths import reduced
from ss_lens.judges.agreement.known import refused_by
from ss_lens.scoring.refusal import BY_PHRASES, counts_by_phrases
from ss_lens.scoring.registry import ANSWERS, ROW, columns_of

GROUP_COLUMNS = (*ARM_COLUMNS, "part", "prompt_class")
UNSTEERED_COLUMNS = ("model", "dataset", "part", "prompt_class", "prompt_index", "prompt")
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


def run_sweep(
    config: SweepConfig,
    folder: Path | str,
    *,
    store: Store | None = None,
    bench: Workbench | None = None,
    behaviour: Behaviour | None = None,
) -> SweepResult:
    """Measure all cells of a grid; those that ``folder`` has already are not computed again.

    Stopped at any moment it resumes when started again, and a changed grid computes only what is
    new. Several processes may share a folder. An arm that cannot be calibrated (shuffled labels may
    leave no discriminative site) is reported as a warning and in ``groups``.

    Answers to harmful prompts are kept in ``folder`` and nowhere else.

    Args:
        config: the grid and how it is measured.
        folder: new, empty, or of an earlier sweep.
        store: of activations; ``None`` is the user's store.
        bench: what sweeps of one process share: the model, activations and calibrations. It was
            made for a configuration that differs in grid, parts, classes and scores at most.
        behaviour: in place of the one that the configuration names, for one that was made in
            Python and has no file. The scores have to name its own.

    Raises:
        UserError: a folder of another format or with something else in it, scores that the
            behaviour lacks, a behaviour without a file on a cluster, an unavailable model or
            dataset, a prompt beyond the context, a full disk, or a grid no arm of which can be
            calibrated.
    """
    check_is("config", config, (SweepConfig,), "a configuration from load_sweep_config(...)")
    check_path("folder", folder)
    check_is("store", store, (Store, type(None)), "a ss_lens.Store(), or None")
    made = "ss_lens.load_behaviour(...), a Behaviour(...), or None"
    check_is("behaviour", behaviour, (Behaviour, type(None)), made)
    store = Store() if store is None else store
    bench = _bench(config, store, bench, behaviour)
    followed = _named_behaviour(config) if bench is None else bench.behaviour
    # Before the slow part: it may fail at its rubric.
    judge = shown_by(followed) if "behaviour_shown" in config.scores else ""
    cells = CellStore.claim(folder)
    _check_result(cells)  # before the slow part
    if followed is not None and not (cells.folder / "result").exists():
        followed.check_ready()
    groups = config.groups()
    outcomes = _finished(config, groups, cells, store, bench)
    table = _table(config, groups, outcomes, cells)
    choices = _choices(config, table)
    if config.choose is not None and "test" not in config.parts:
        later = [
            CellGroup(made.arm, "test", prompt_class, (made.choice.angle_deg,))
            for made in choices
            if made.choice.angle_deg is not None
            for prompt_class in config.prompt_class
        ]
        if later:
            outcomes_later = _finished(config, later, cells, store, bench)
            table = pd.concat(
                [table, _table(config, later, outcomes_later, cells)], ignore_index=True
            )
            groups, outcomes = (*groups, *later), outcomes + outcomes_later
            choices = _choices(config, table)
    unsteered = _unsteered(config, groups, outcomes, cells)
    found = _group_table(groups, outcomes)
    result = SweepResult(config, table, found, choices, unsteered, judge)
    _save(result, cells)
    return result


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
    table = _typed(found["table"])
    if counts_by_phrases(table):
        logger.info("the result at %s %s; run the sweep again, which is quick", path, BY_PHRASES)
    return SweepResult(
        SweepConfig(**values["config"]),
        table.assign(angle_deg=table["angle_deg"].astype(float).map(reduced)),
        _typed(found["groups"]),
        tuple(
            ArmChoice(Arm(**made["arm"]), AngleChoice.from_json(made["choice"]))
            for made in values["choices"]
        ),
        found["unsteered"] if "unsteered" in found else table.iloc[:0].filter(UNSTEERED_COLUMNS),
        values.get("shown_by", ""),  # earlier versions did not say
    )


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


def _bench(
    config: SweepConfig, store: Store, bench: Workbench | None, behaviour: Behaviour | None
) -> Workbench | None:
    """The bench of this process; ``None`` where others do the work."""
    if config.cluster is not None:
        if behaviour is not None and config.behaviour is None:
            raise UserError(
                f"the behaviour {behaviour.name!r} was made in Python and got cluster "
                f"{config.cluster!r}, whose processes cannot have it; write it into a YAML file "
                "and name it in the configuration, or sweep without a cluster."
            )
        check_behaviour(config.scores, _named_behaviour(config))
        return None
    bench = Workbench(config, store, behaviour) if bench is None else bench
    check_behaviour(config.scores, bench.behaviour)
    return bench


def _named_behaviour(config: SweepConfig) -> Behaviour | None:
    return None if config.behaviour is None else load_behaviour(config.behaviour)


def _finished(
    config: SweepConfig,
    groups: Sequence[CellGroup],
    cells: CellStore,
    store: Store,
    bench: Workbench | None,
) -> list[Outcome]:
    here = partial(finish_groups, bench=bench)
    finish = here if config.cluster is None else finish_on_cluster
    with progress_bar(sum(len(group.angles_deg) for group in groups), "sweep", "cell") as bar:

        def finished(place: int) -> None:
            bar.update(len(groups[place].angles_deg))

        outcomes = finish(config, groups, cells, store, finished=finished)
    problems = {group.arm: o.problem for group, o in zip(groups, outcomes, strict=True)}
    for arm, problem in problems.items():
        if problem:
            logger.warning("not computed: %s, since %s", arm, problem)
    if all(problems.values()):
        raise UserError(
            f"no arm can be calibrated; the first says: {next(iter(problems.values()))}"
        )
    return outcomes


def _table(
    config: SweepConfig,
    groups: Sequence[CellGroup],
    outcomes: Sequence[Outcome],
    cells: CellStore,
) -> pd.DataFrame:
    tables = []
    for group, outcome in zip(groups, outcomes, strict=True):
        if outcome.key is None:
            continue
        rows = group_rows(group, outcome, config.scores_of(group.part), cells)
        for place, (name, value) in enumerate(group.columns.items()):
            rows.insert(place, name, value)
        tables.append(_typed(rows))
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


def _unsteered(
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


def _choices(config: SweepConfig, table: pd.DataFrame) -> tuple[ArmChoice, ...]:
    if config.choose is None:
        return ()
    return tuple(
        ArmChoice(arm, choose_angle(rows, config.choose)) for arm, rows in _arms_of(config, table)
    )


def _arms_of(config: SweepConfig, table: pd.DataFrame) -> list[tuple[Arm, pd.DataFrame]]:
    found = []
    for arm in dict.fromkeys(group.arm for group in config.groups()):
        here = pd.Series(True, index=table.index)
        for name, value in asdict(arm).items():
            here &= table[name].isna() if value is None else table[name] == value
        if here.any():
            found.append((arm, table[here]))
    return found


def _group_table(groups: Sequence[CellGroup], outcomes: Sequence[Outcome]) -> pd.DataFrame:
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
    return _typed(pd.DataFrame(rows))


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Seeds are whole numbers or missing; without seeds, Parquet would forget which."""
    return table.astype({"seed": "Int64"})


def _save(result: SweepResult, cells: CellStore) -> None:
    choices = [
        {"arm": asdict(made.arm), "choice": made.choice.as_json()} for made in result.choices
    ]
    with cells.exclusive():
        _check_result(cells)
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


def _check_result(cells: CellStore) -> None:
    """Refuse to replace a folder that holds a file of the user's."""
    names = {"sweep.json", *(f"{name}.parquet" for name in _TABLES)}
    check_replaceable(cells.folder / "result", names, "result of a sweep")
