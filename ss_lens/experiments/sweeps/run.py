"""Sweeps: a grid of cells, each computed once, whoever computes it and however often one stops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from ss_lens.activations.store import Store
from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import load_behaviour
from ss_lens.core.checks import check_is, check_path
from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.choose_angle import choose_angle
from ss_lens.experiments.cluster import finish_on_cluster
from ss_lens.experiments.config import SweepConfig, check_behaviour
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Workbench
from ss_lens.experiments.summaries import shown_by
from ss_lens.experiments.sweeps.result import ArmChoice, SweepResult, check_result, save
from ss_lens.experiments.sweeps.tables import group_table, joined, unsteered_rows
from ss_lens.experiments.worker import Outcome, finish_groups

logger = logging.getLogger(__name__)


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
    check_result(cells)  # before the slow part
    if followed is not None and not (cells.folder / "result").exists():
        followed.check_ready()
    groups = config.groups()
    outcomes = _finished(config, groups, cells, store, bench)
    table = joined(config, groups, outcomes, cells)
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
                [table, joined(config, later, outcomes_later, cells)], ignore_index=True
            )
            groups, outcomes = (*groups, *later), outcomes + outcomes_later
            choices = _choices(config, table)
    unsteered = unsteered_rows(config, groups, outcomes, cells)
    found = group_table(groups, outcomes)
    result = SweepResult(config, table, found, choices, unsteered, judge)
    save(result, cells)
    return result


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
