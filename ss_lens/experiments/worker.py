"""Finishing cell groups: what one process of a sweep does, alone or beside others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

from ss_lens.activations.store import Store
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.config import Score, SweepConfig
from ss_lens.experiments.grid import CellGroup
from ss_lens.experiments.inputs import NotApplicable, Setting, Workbench
from ss_lens.experiments.measures import answered, measured

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A group whose cells are finished, or one that has none and why.

    Attributes:
        key: of its cells in the store; ``None`` where the arm cannot be calibrated.
        steered_sites: as text.
        problem: why the arm cannot be calibrated.
    """

    key: str | None
    steered_sites: tuple[str, ...] = ()
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        return cls(values["key"], tuple(values["steered_sites"]), values["problem"])


def finish_groups(
    config: SweepConfig,
    groups: Sequence[CellGroup],
    cells: CellStore,
    store: Store,
    *,
    finished: Callable[[int], None],
    first: int = 0,
) -> list[Outcome]:
    """Compute what the store lacks, and return when every group is finished.

    Groups that another process is computing are left to it and looked at again at the end, when
    this one waits for them; if that process dies, this one computes them.

    Args:
        config: what to measure.
        groups: of the sweep.
        cells: where finished cells are, and come.
        store: of activations.
        finished: called with the place of each group that is finished.
        first: place of the group to begin with; processes that begin apart seldom meet.

    Raises:
        UserError: a model or dataset that cannot be had, a prompt beyond the context, a full disk.
    """
    # By model, since the bench holds one at a time.
    places = sorted(range(len(groups)), key=lambda i: groups[i].arm.model)
    places = places[first:] + places[:first]
    bench, outcomes = Workbench(config, store), dict[int, Outcome]()
    for wait in (False, True):
        for place in [place for place in places if place not in outcomes]:
            outcome = _finish(config, groups[place], cells, bench, wait)
            if outcome is not None:
                outcomes[place] = outcome
                finished(place)
    return [outcomes[place] for place in range(len(groups))]


def _finish(
    config: SweepConfig, group: CellGroup, cells: CellStore, bench: Workbench, wait: bool
) -> Outcome | None:
    try:
        setting = bench.setting(group)
    except NotApplicable as error:
        return Outcome(key=None, problem=str(error))
    with cells.group(setting.identity, wait=wait) as key:
        if key is None:
            return None
        missing: dict[Score, list[float]] = {
            score: _missing(score, group, key, cells) for score in config.scores_of(group.part)
        }
        arm, prompts = group.arm, f"{group.part} {group.prompt_class} prompts"
        if any(missing.values()):
            selection = shorten(arm.selection.replace(",", ", "), 60, placeholder=" …")
            logger.info("sweep: %s, %s, %s on %s", arm.operator, selection, arm.plane, prompts)
        for score, angles in missing.items():
            if angles:
                logger.debug("%s at %d of %d angles", score, len(angles), len(group.angles_deg))
                _measure(score, angles, key, setting, cells)
    sites = tuple(map(str, setting.calibration.selected_sites))
    return Outcome(key, sites)


def _missing(score: Score, group: CellGroup, key: str, cells: CellStore) -> list[float]:
    known = {*cells.read(key, score)["angle_deg"]}
    return [angle for angle in group.angles_deg if angle not in known]


def _measure(
    score: Score, angles_deg: Sequence[float], key: str, setting: Setting, cells: CellStore
) -> None:
    answers = cells.read(key, "answers")
    rows = measured(score, setting, angles_deg, answers, lambda: _unsteered(setting, cells))
    cells.commit(key, score, rows)


def _unsteered(setting: Setting, cells: CellStore) -> list[str]:
    """The unsteered model's answers, which all arms share; kept as a group of one cell."""
    with cells.group({"unsteered": True, **setting.unsteered}, wait=True) as key:
        assert key is not None
        if cells.read(key, "answers").empty:
            rows = answered(setting)
            cells.commit(key, "answers", rows.assign(angle_deg=0.0))
        return cells.read(key, "answers")["response"].tolist()
