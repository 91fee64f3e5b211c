"""Finishing cell groups: what one process of a sweep does, alone or beside others."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

import pandas as pd

from ss_lens.activations.store import Store
from ss_lens.core.errors import NotApplicable, UserError
from ss_lens.experiments.answers import (
    OF,
    are_cut,
    digests_of,
    forget_cut,
    read_answers,
    scored,
)
from ss_lens.experiments.cells import CellStore, digest_of_text, unfinished_angles
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.grid import CellGroup
from ss_lens.experiments.inputs import Setting, Workbench
from ss_lens.generation.angle_batch import Angled, sweep_angles
from ss_lens.generation.generate import generate
from ss_lens.geometry.operators import RotateBy
from ss_lens.scoring.registry import ANSWERS, ROW, ScoreInput, parts_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A group whose cells are finished, or one that has none and why.

    Attributes:
        key: of its cells in the store; ``None`` where the arm cannot be calibrated.
        steered_sites: as text.
        problem: why the arm cannot be calibrated.
        unsteered: the key of the unsteered model's cells on the same prompts.
    """

    key: str | None
    steered_sites: tuple[str, ...] = ()
    problem: str | None = None
    unsteered: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        sites = tuple(values["steered_sites"])
        return cls(values["key"], sites, values["problem"], values["unsteered"])


def finish_groups(
    config: SweepConfig,
    groups: Sequence[CellGroup],
    cells: CellStore,
    store: Store,
    *,
    finished: Callable[[int], None],
    first: int = 0,
    bench: Workbench | None = None,
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
        bench: with what it has already; ``None`` is a new one.

    Raises:
        UserError: an unavailable model or dataset, a prompt beyond the context, a full disk.
    """
    # By model, since the bench holds one at a time.
    places = sorted(range(len(groups)), key=lambda i: groups[i].arm.model)
    places = places[first:] + places[:first]
    bench = Workbench(config, store) if bench is None else bench
    outcomes = dict[int, Outcome]()
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
    return finish_setting(config.scores_of(group.part), group, setting, cells, wait=wait)


def finish_setting(
    scores: Sequence[str],
    group: CellGroup,
    setting: Setting,
    cells: CellStore,
    *,
    wait: bool,
    baseline: bool = True,
) -> Outcome | None:
    """Compute what the store lacks of one group; ``None`` where another process has it.

    Args:
        scores: what to measure, each after what it builds on.
        group: whose cells they are.
        setting: of the group.
        cells: where finished cells are, and come.
        wait: until the other process is done with it, or dead.
        baseline: whether the unsteered model is measured on the same prompts.
    """
    unsteered = cells.key(_unsteered_identity(setting))
    with cells.group(setting.identity, wait=wait) as key:
        if key is None:
            return None
        missing = {s: _missing(s, group, key, unsteered, setting, cells) for s in scores}
        if any(missing.values()):
            _tell(group)
        for score in scores:
            # Looked up again, since answers that were just computed may differ from those before.
            if angles := _missing(score, group, key, unsteered, setting, cells):
                if parts_of(score)[0].needs == "answers":
                    _have_whole(angles, group, key, unsteered, setting, cells)
                logger.debug("%s at %d of %d angles", score, len(angles), len(group.angles_deg))
                _measure(score, angles, key, unsteered, setting, cells)
        if baseline:
            _finish_unsteered(scores, setting, cells)
    return Outcome(key, tuple(map(str, setting.calibration.selected_sites)), None, unsteered)


def finished_rows(cells: CellStore, key: str, unsteered: str | None, score: str) -> pd.DataFrame:
    """The finished cells of one score, without those of answers that have changed since.

    Args:
        cells: where they are.
        key: of the group.
        unsteered: the key of the unsteered model's cells.
        score: one of :func:`ss_lens.scoring.registry.measured_names`.
    """
    if score == ANSWERS:
        return read_answers(cells, key)
    rows = cells.read(key, score)
    if parts_of(score)[0].needs == "prompts" or rows.empty:
        return rows
    if OF not in rows:
        logger.info("sweep: %s of an earlier version is measured again", score)
        return rows.iloc[:0]
    if parts_of(score)[0].needs == "answers":
        answers = read_answers(cells, key)
        found = answers.reindex(columns=[*ROW]).assign(now=digests_of(answers))
        places = rows[[*ROW]].merge(found.drop_duplicates([*ROW]), how="left", on=[*ROW])
        now = places["now"]
    else:
        assert unsteered is not None
        answers = read_answers(cells, unsteered)
        now = rows["prompt_index"].map(dict(enumerate(digests_of(answers))))
    return rows.loc[(now == rows[OF].set_axis(now.index)).to_numpy()].drop(columns=OF)


def measured(
    score: str,
    setting: Setting,
    angles_deg: Sequence[float],
    answers: pd.DataFrame,
    unsteered: Sequence[str],
) -> pd.DataFrame:
    """One row per prompt and angle: the columns of :data:`ROW` and of ``score``.

    Args:
        score: one of :func:`ss_lens.scoring.registry.measured_names`; ``answers`` are the texts
            alone, in ``response``.
        setting: of the group.
        angles_deg: in degrees.
        answers: the steered answers at these angles; empty for what needs none.
        unsteered: the unsteered model's answers to the prompts.
    """
    if score == ANSWERS:
        return sweep_angles(
            setting.model,
            setting.calibration,
            setting.operator,
            setting.prompts,
            angles_deg,
            max_new_tokens=setting.max_new_tokens,
            batch_rows=setting.batch_rows,
            chat=setting.chat,
        )
    return _scored(score, setting, setting.operator, angles_deg, answers, unsteered)


def unsteered_table(
    cells: CellStore, key: str, scores: Sequence[str], prompts: pd.DataFrame
) -> pd.DataFrame:
    """What the unsteered model scores: ``prompts``, with ``angle_deg`` missing and the columns.

    Args:
        cells: where they are.
        key: of the unsteered model's cells.
        scores: what was measured.
        prompts: ``prompt_index`` and ``prompt``.
    """
    table = prompts.reset_index(drop=True).assign(angle_deg=math.nan)
    for score in (name for name in scores if _is_of_one_model(name)):
        rows = finished_unsteered(cells, key, score)
        if score == ANSWERS:
            rows = rows.filter(["response", OF])
        if len(rows) != len(table):
            raise UserError(
                "finished cells of the unsteered model are gone; run the same command again, which "
                "computes them."
            )
        table = pd.concat([table, rows.reset_index(drop=True)], axis=1)
        if score == ANSWERS:
            table = scored(cells, key, table)
    return table


def finished_unsteered(cells: CellStore, key: str, score: str) -> pd.DataFrame:
    """The unsteered model's cells of one score, without those of answers that have changed."""
    if score == ANSWERS:
        return read_answers(cells, key)
    rows = cells.read(key, score).drop(columns="angle_deg")
    if OF not in rows:
        return rows
    digests = digests_of(read_answers(cells, key))
    return rows.drop(columns=OF) if rows[OF].tolist() == digests else rows.iloc[:0]


def _is_of_one_model(score: str) -> bool:
    return parts_of(score)[0].needs != "unsteered answers"


def _tell(group: CellGroup) -> None:
    arm, prompts = group.arm, f"{group.part} {group.prompt_class} prompts"
    selection = shorten(arm.selection.replace(",", ", "), 60, placeholder=" …")
    angles = shorten(", ".join(f"{angle:g}°" for angle in group.angles_deg), 60, placeholder=" …")
    plane = shorten(arm.plane.replace(",", ", "), 60, placeholder=" …")
    logger.info("sweep: %s, %s, %s at %s on %s", arm.operator, selection, plane, angles, prompts)


def _missing(
    score: str,
    group: CellGroup,
    key: str,
    unsteered: str,
    setting: Setting,
    cells: CellStore,
) -> list[float]:
    rows = finished_rows(cells, key, unsteered, score)
    return unfinished_angles(rows, group.angles_deg, len(setting.prompts))


def _have_whole(
    angles_deg: Sequence[float],
    group: CellGroup,
    key: str,
    unsteered: str,
    setting: Setting,
    cells: CellStore,
) -> None:
    """Write answers that were cut once more, where something is to be computed from them."""
    answers = read_answers(cells, key)
    if are_cut(answers.loc[answers["angle_deg"].isin(angles_deg)]).any():
        forget_cut(cells, key)
        again = _missing(ANSWERS, group, key, unsteered, setting, cells)
        _measure(ANSWERS, again, key, unsteered, setting, cells)


def _measure(
    score: str,
    angles_deg: Sequence[float],
    key: str,
    unsteered: str,
    setting: Setting,
    cells: CellStore,
) -> None:
    needs = parts_of(score)[0].needs
    answers, texts = pd.DataFrame(columns=[*ROW, "response"]), list[str]()
    if needs == "answers":
        answers = cells.read(key, ANSWERS).drop_duplicates([*ROW])
        answers = answers.query("angle_deg in @angles_deg").reset_index(drop=True)
    if needs == "unsteered answers":
        with cells.group(_unsteered_identity(setting), wait=True):
            texts = _whole_unsteered(setting, cells, unsteered)
    rows = measured(score, setting, angles_deg, answers, texts)
    if needs == "answers":
        rows[OF] = [*map(digest_of_text, answers["response"])]
    if needs == "unsteered answers":
        rows[OF] = [digest_of_text(texts[place]) for place in rows["prompt_index"]]
    cells.commit(key, score, rows)


def _unsteered_identity(setting: Setting) -> dict[str, Any]:
    return {"unsteered": True, **setting.unsteered}


def _finish_unsteered(scores: Sequence[str], setting: Setting, cells: CellStore) -> None:
    """The unsteered model's cells, which all arms share; kept as a group of one cell per score."""
    with cells.group(_unsteered_identity(setting), wait=True) as key:
        assert key is not None
        for score in filter(_is_of_one_model, scores):
            if len(finished_unsteered(cells, key, score)) == len(setting.prompts):
                continue
            if score == ANSWERS:
                rows = pd.DataFrame({"response": _generated(setting)})
            else:
                of_answers = parts_of(score)[0].needs == "answers"
                texts = _whole_unsteered(setting, cells, key) if of_answers else []
                rows = _unsteered_rows(score, setting, texts)
            cells.commit(key, score, rows.assign(angle_deg=0.0))


def _whole_unsteered(setting: Setting, cells: CellStore, key: str) -> list[str]:
    """The unsteered model's answers, in the order of the prompts."""
    answers = read_answers(cells, key)
    if len(answers) != len(setting.prompts) or are_cut(answers).any():
        answers = pd.DataFrame({"response": _generated(setting)})
        cells.commit(key, ANSWERS, answers.assign(angle_deg=0.0))
    return answers["response"].tolist()


def _generated(setting: Setting) -> list[str]:
    return generate(
        setting.model,
        setting.prompts,
        max_new_tokens=setting.max_new_tokens,
        batch_size=setting.batch_rows,
        chat=setting.chat,
    )


def _unsteered_rows(score: str, setting: Setting, texts: Sequence[str]) -> pd.DataFrame:
    """A score at 0° of ``RotateBy``, which is the identity, bit for bit."""
    answers = pd.DataFrame(
        {
            "prompt_index": range(len(texts)),
            "prompt": setting.prompts[: len(texts)],
            "angle_deg": 0.0,
            "response": texts,
        }
    )
    rows = _scored(score, setting, RotateBy, (0.0,), answers, ())
    if parts_of(score)[0].needs == "answers":
        rows[OF] = [*map(digest_of_text, texts)]
    return rows.drop(columns=[*ROW])


def _scored(
    score: str,
    setting: Setting,
    operator: Angled,
    angles_deg: Sequence[float],
    answers: pd.DataFrame,
    unsteered: Sequence[str],
) -> pd.DataFrame:
    (whole,) = parts_of(score)
    behaviour = setting.behaviour
    return whole(
        ScoreInput(
            model=setting.model,
            calibration=setting.calibration,
            operator=operator,
            prompts=setting.prompts,
            chat=setting.chat,
            angles_deg=angles_deg,
            answers=answers,
            unsteered=unsteered,
            batch_rows=setting.batch_rows,
            lower=setting.lower,
            openings=None if behaviour is None else behaviour.openings,
            shows=None if behaviour is None else behaviour.reader,
        )
    )
