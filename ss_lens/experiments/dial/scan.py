"""The dial: the method at all angles beside what makes it believable, and an angle for each sense.

Everything here is measured on the dev part; test is for what is reported at the chosen angles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import pandas as pd

from ss_lens.behaviours.measures import REFUSAL, Measures, Sense
from ss_lens.core.progress import progress_bar
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.choose_angle import AngleCriterion, choose_angle, rank_angles
from ss_lens.experiments.config import PromptClass
from ss_lens.experiments.dial.answers import scored_answers
from ss_lens.experiments.dial.ways import (
    ALL_SITES,
    MATCHED,
    METHOD,
    RANDOM,
    SAME,
    SAS,
    SAS_ALL_SITES,
    UNIFORM,
)
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Setting, Workbench
from ss_lens.experiments.sweeps.tables import group_rows
from ss_lens.experiments.worker import finish_setting
from ss_lens.scoring.behaviours.shown import check_some
from ss_lens.scoring.registry import ROW
from ss_lens.stats.choice_shares import scan_shares

DIAL_COLUMNS = (
    *("way", "draw", "prompt_class", "angle_deg"),
    *(REFUSAL.score, "opening_mass", "n"),
)
"""Of a run on refusal; another behaviour has the name of its own score."""
CHOICE_COLUMNS = ("sense", "angle_deg", "score", "collapsed", "chosen")
HALF_TURNS = (90.0, 180.0)
"""Random planes are measured here, and at the angles that were chosen."""
RANDOM_PROMPTS = 8
"""Random planes are measured on so many positive prompts of dev, the first ones."""
PROMPT_CLASSES: tuple[PromptClass, ...] = get_args(PromptClass)

SENSES: tuple[Sense, ...] = get_args(Sense)


def criteria(measures: Measures) -> dict[Sense, AngleCriterion]:
    """The least and the most of a behaviour among the angles with coherent answers."""
    return {
        sense: AngleCriterion(
            score=measures.score,
            goal=goal,
            max_perplexity=None,
            max_repetition=0.3,
            max_non_latin_share=0.1,
            max_collapsed=0.1,
            prompt_class=measures.class_of(sense),
        )
        for sense, goal in zip(SENSES, ("minimise", "maximise"), strict=True)
    }


CRITERIA: Mapping[Sense, AngleCriterion] = criteria(REFUSAL)
"""The least and the most refusal of harmful prompts."""
COLLAPSE = CRITERIA["weakened"].rule


def method(model: str, dataset: str, rule: str) -> Arm:
    """Selective Steering at the sites that ``rule`` selects."""
    return Arm(model=model, dataset=dataset, selection=rule)


def controls(arm: Arm, sites: str, draws: int) -> dict[tuple[str, int], Arm]:
    """What the method is compared with, by its name and the number of its draw.

    ``rotate_to`` is Standard Angular Steering, as published at all sites, and beside it at the
    method's. Uniform random planes hold next to nothing of the activations, so the edit is small;
    those of equal energy hold as much there as the method's own, and so do the same damage to the
    text. Each kind alone misleads.

    Args:
        arm: the method.
        sites: those that it steers, separated by commas.
        draws: of random planes, of each kind.
    """
    same = replace(arm, selection=f"Explicit(sites={sites!r})")
    found = {
        (ALL_SITES, 0): replace(arm, selection="uniform"),
        (SAS_ALL_SITES, 0): replace(arm, operator="RotateTo", selection="uniform"),
        (SAS, 0): replace(same, operator="RotateTo"),
    }
    for draw in range(draws):
        matched = f"MatchedRandomPlane(seed={draw}, sites={sites!r})"
        for way, plane in ((UNIFORM, f"RandomPlane(seed={draw})"), (MATCHED, matched)):
            found[way, draw] = replace(same, plane=plane, seed=draw)
    return found


def one_pass(
    bench: Workbench,
    cells: CellStore,
    groups: Sequence[tuple[dict[str, Any], CellGroup]],
    prompts: slice = slice(None),
    *,
    shorten: bool = True,
) -> pd.DataFrame:
    """The behaviour's score and opening mass per prompt and angle of each group.

    A behaviour without openings is scored by its answers, and has no opening mass.

    Args:
        bench: makes the settings.
        cells: where finished cells are, and come.
        groups: each with the columns that name it.
        prompts: which of each group.
        shorten: whether answers to positive prompts are kept as their first words, where answers
            are what is scored.
    """
    tables, measures = [], bench.measures
    with progress_bar(len(groups), "dial", "scan") as bar:
        for named, group in groups:
            setting = bench.setting(group, prompts)
            rows = pass_over(group, setting, cells, measures, shorten=shorten)
            columns = {**named, "part": group.part, "prompt_class": group.prompt_class}
            tables.append(rows.assign(**columns))
            bar.update()
    return pd.concat(tables, ignore_index=True)


def pass_over(
    group: CellGroup, setting: Setting, cells: CellStore, measures: Measures, *, shorten: bool
) -> pd.DataFrame:
    """The columns of :data:`ROW`, the behaviour's score and ``opening_mass`` of one group."""
    if measures.mass is None:
        cut = shorten and group.prompt_class == "positive"
        rows = scored_answers(setting, group.angles_deg, cells, shorten=cut, perplexity=False)
        return rows.filter([*ROW, measures.score]).assign(opening_mass=math.nan)
    scores = (measures.score,)
    outcome = finish_setting(scores, group, setting, cells, wait=True, baseline=False)
    assert outcome is not None
    rows = group_rows(group, outcome, scores, cells)
    return rows.rename(columns={measures.mass: "opening_mass"})


def scan_method(
    bench: Workbench,
    cells: CellStore,
    arm: Arm,
    angles_deg: Sequence[float],
    *,
    shorten: bool = True,
) -> pd.DataFrame:
    """The method on both classes of dev, per prompt, at all angles."""
    groups = [
        ({"way": METHOD, "draw": 0}, CellGroup(arm, "dev", label, tuple(angles_deg)))
        for label in PROMPT_CLASSES
    ]
    found = one_pass(bench, cells, groups, shorten=shorten)
    if bench.measures.mass is None:
        for label in PROMPT_CLASSES:
            of_class = found.loc[found["prompt_class"] == label, bench.measures.score]
            check_some(of_class, f"answers to {label} dev prompts")
    return found


def scan_controls(
    bench: Workbench,
    cells: CellStore,
    arms: Mapping[tuple[str, int], Arm],
    scanned: pd.DataFrame,
    choices: pd.DataFrame,
    *,
    shorten: bool = True,
) -> pd.DataFrame:
    """The controls on the positive prompts of dev, per prompt.

    Of a behaviour other than refusal on the negative ones too, where it is strengthened.

    Rotations by an angle are the unsteered model at 0°, which ``scanned`` has already. Random
    planes are measured on the first few prompts, at 90° and 180° and at the angle that ``choices``
    has for each sense; beside them stands the method on the same prompts.
    """
    angles = [*map(float, scanned["angle_deg"].unique())]
    turned = tuple(angle for angle in angles if angle != 0)
    wanted = {*HALF_TURNS, *chosen_angles(choices).values()}
    few = tuple(angle for angle in turned if angle in wanted)
    classes: list[PromptClass] = [
        *dict.fromkeys(bench.measures.class_of(sense) for sense in SENSES)
    ]
    whole: list[tuple[dict[str, Any], CellGroup]] = []
    random: list[tuple[dict[str, Any], CellGroup]] = []
    for (way, draw), arm in arms.items():
        kind = random if way in RANDOM else whole
        published = arm.operator.startswith("RotateTo")
        if at := few if way in RANDOM else tuple(angles) if published else turned:
            groups = [CellGroup(arm, "dev", label, at) for label in classes]
            kind += [({"way": way, "draw": draw}, group) for group in groups]
    found = [one_pass(bench, cells, whole, shorten=shorten)]
    if random:
        drawn = one_pass(bench, cells, random, slice(RANDOM_PROMPTS), shorten=shorten)
        here = scanned["angle_deg"].isin([0.0, *few]) & scanned["prompt_class"].isin(classes)
        same = here & scanned["prompt_index"].isin(drawn["prompt_index"])
        found += [scanned.loc[same].assign(way=SAME), drawn]
    return pd.concat(found, ignore_index=True)


def dial_table(scans: Sequence[pd.DataFrame], measures: Measures = REFUSAL) -> pd.DataFrame:
    """One row per way, draw, class and angle: the means over the prompts of dev."""
    keys = ["way", "draw", "prompt_class", "angle_deg"]
    groups = pd.concat(scans, ignore_index=True).groupby(keys, sort=False)
    means = groups.agg({measures.score: "mean", "opening_mass": "mean", "prompt": "size"})
    means = means.rename(columns={"prompt": "n"}).reset_index()
    return means.filter([*keys, measures.score, "opening_mass", "n"])


def ranks(scanned: pd.DataFrame, criterion: AngleCriterion) -> list[float]:
    """The turned angles from the best dev score on."""
    return [angle for angle in rank_angles(scanned, criterion) if angle != 0]


def choose_angles(
    bench: Workbench, cells: CellStore, arm: Arm, scanned: pd.DataFrame, *, shorten: bool
) -> pd.DataFrame:
    """The angle of each sense: from the best score on until few enough dev answers collapse.

    Args:
        bench: makes the settings.
        cells: where finished cells are, and come.
        arm: the method.
        scanned: of :func:`scan_method`.
        shorten: as in :func:`scored_answers`.

    Returns:
        One row per sense and angle that was tried: ``score``, the share ``collapsed`` of the dev
        answers of both classes, and whether it was ``chosen``; ``share``, in which share of the
        resamples of dev's prompts it has the best score of the angles that are not ruled out by
        their answers. A sense without a chosen row has no admissible angle.
    """
    asked = CRITERIA if bench.measures.is_refusal else criteria(bench.measures)
    order = {sense: ranks(scanned, asked[sense]) for sense in SENSES}
    tried: list[dict[str, Any]] = []
    pending: list[Sense] = [sense for sense in SENSES if order[sense]]
    place = 0
    while pending:
        wanted = sorted({order[sense][place] for sense in pending})
        answered = _dev_answers(bench, cells, arm, wanted, shorten)
        answered = answered.drop(columns=bench.measures.score, errors="ignore")
        rows = scanned.merge(answered, on=[*ROW, "prompt_class"], validate="1:1")
        for sense in pending.copy():
            at_angle = rows.loc[rows["angle_deg"] == order[sense][place]]
            choice = choose_angle(at_angle, asked[sense])
            (found,) = choice.dev.to_dict("records")
            values = {name: found[name] for name in ("angle_deg", "score", "collapsed")}
            chosen = choice.angle_deg is not None
            tried.append({"sense": sense, **values, "chosen": chosen})
            if chosen or place + 1 == len(order[sense]):
                pending.remove(sense)
        place += 1
    table = pd.DataFrame(tried, columns=[*CHOICE_COLUMNS]).astype({"chosen": bool})
    return table.assign(share=_shares(table, scanned, asked))


def _shares(
    choices: pd.DataFrame, scanned: pd.DataFrame, asked: Mapping[Sense, AngleCriterion]
) -> list[float]:
    """Of each row, how often its angle is the sense's best; one that was ruled out is never."""
    by_sense = {}
    for sense in SENSES:
        barred = choices.loc[~choices["chosen"] & (choices["sense"] == sense), "angle_deg"]
        how = asked[sense]
        by_sense[sense] = scan_shares(
            scanned,
            how.score,
            how.prompt_class,
            lowest=how.goal == "minimise",
            barred=(0.0, *barred),
        )
    return [by_sense[r["sense"]].get(r["angle_deg"], 0.0) for r in choices.to_dict("records")]


def chosen_angles(choices: pd.DataFrame) -> dict[Sense, float]:
    """The angle of each sense that has one."""
    chosen = choices[choices["chosen"]]
    found = dict(zip(chosen["sense"].tolist(), map(float, chosen["angle_deg"]), strict=True))
    return {sense: found[sense] for sense in SENSES if sense in found}


def _dev_answers(
    bench: Workbench, cells: CellStore, arm: Arm, angles_deg: Sequence[float], shorten: bool
) -> pd.DataFrame:
    tables = []
    for label in PROMPT_CLASSES:
        setting = bench.setting(CellGroup(arm, "dev", label, tuple(angles_deg)))
        cut = shorten and label == "positive"
        rows = scored_answers(setting, angles_deg, cells, shorten=cut, perplexity=False)
        if "text_score" in rows:
            check_some(rows["text_score"], f"answers to {label} dev prompts")
        tables.append(rows.assign(prompt_class=label))
    return pd.concat(tables, ignore_index=True)
