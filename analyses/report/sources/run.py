"""The contents of the report of a main job, finished or not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.dial_looks import named
from analyses.report.contents import (
    DIAL_MEASURES,
    PLAIN_CLASSES,
    REFUSAL_CLASSES,
    UNSTEERED,
    Command,
    Contents,
    Measure,
    Role,
    Said,
    Series,
    dial_measures,
)
from analyses.report.sources import notes, run_facts
from analyses.report.sources.ablations import beside, level_tables
from analyses.report.sources.run_tables import choice_table, score_table
from analyses.report.sources.sites import with_sites
from ss_lens import Calibration, Discriminative, Store, load_run
from ss_lens.experiments.ablations.config import AblationConfig
from ss_lens.experiments.dial.config import RunConfig
from ss_lens.experiments.dial.folder import is_finished, run_identity
from ss_lens.experiments.dial.run import Run
from ss_lens.experiments.dial.scan import chosen_angles
from ss_lens.experiments.dial.ways import (
    ALL_SITES,
    HEADINGS,
    METHOD,
    RANDOM,
    SAME,
    SAS,
    SAS_ALL_SITES,
)
from ss_lens.experiments.summaries import judges
from ss_lens.scoring.registry import all_columns, headings
from ss_lens.stats.bootstrap import CONFIDENCE

_ROLES: dict[str, Role] = {
    METHOD: "method",
    **dict.fromkeys((ALL_SITES, SAS, SAS_ALL_SITES, SAME), "variant"),
    **dict.fromkeys(RANDOM, "random"),
}
_UNFINISHED = (
    "This run is not finished: the dial, the choice of angles, the answers and the verdict are "
    "missing. What is finished is kept; this command makes the rest: {command}"
)
_SENTENCES = r"(?<=\.) (?=(?:[^.:\s][^.:]* turned|No angle|No turned angle)\b)"


def of_run(folder: Path, store: Store | None = None) -> Contents:
    """What there is of a run, with a note on each thing that there is not.

    Raises:
        UserError: the folder holds no run, or one that was changed since it was made.
    """
    identity = run_identity(folder)
    config = RunConfig.from_json(identity["config"])
    run = load_run(folder) if is_finished(folder) else None
    calibration = run.calibration if run else _calibration(folder)
    model = calibration.spec.model.name if calibration else "MODEL"
    dataset = identity["dataset"]["name"]
    kept = identity.get("behaviour")
    behaviour = run_facts.behaviour_given(None if kept is None else str(kept["behaviour"]))
    classes = REFUSAL_CLASSES if kept is None else PLAIN_CLASSES
    dtype = calibration.spec.model.dtype if calibration else run_facts.USUAL_DTYPE
    command = run_facts.run_command(config, model, dataset, folder, behaviour, dtype)
    asked = run_facts.ablations_of(config, model, dataset, dtype)
    ablating = run_facts.ablate_command(asked, str(folder.parent / "ablations"), behaviour)
    told = [*run_facts.about_version(identity), *run_facts.about_dataset(identity)]
    if run is None:
        told.insert(0, _UNFINISHED.format(command=command))
    contents = Contents(
        title=f"{Path(model).name} · {dataset}",
        subtitle="Selective Steering: the dial of the main job, its controls, answers to test",
        classes=classes,
        configuration=run_facts.configuration(config, calibration, classes["positive"]),
        provenance=run_facts.provenance(identity, calibration),
        commands=(
            Command("the run, resumed where it stopped", command),
            Command("ablations of its calibration, shown here when they lie beside it", ablating),
            Command("this report", f"ss-lens report {folder}"),
            Command("its figures, one by one", f"python -m analyses {folder}"),
        ),
    )
    if calibration is not None:
        contents, more = with_sites(contents, calibration, identity["activations"], store)
        told += more
    if run is not None:
        contents, more = _with_results(contents, run)
        told += more
        contents = _with_ablations(contents, folder, asked, run.calibration)
    return replace(contents, notes=tuple(told))


def said(verdict: str) -> tuple[Said, ...]:
    """The verdict's sentences, each in a headline and its numbers.

    >>> said("Refusal turned down at 90°: refused 1 → 0. No turned angle was asked for.")
    (Said(headline='Refusal turned down at 90°', detail='Refused 1 → 0.'), \
Said(headline='No turned angle was asked for.', detail=''))
    """
    typeset = re.sub(r"(?<![\w.])-(?=\d)", "−", verdict)
    parts = [sentence.partition(": ") for sentence in re.split(_SENTENCES, typeset) if sentence]
    return tuple(Said(head, detail[:1].upper() + detail[1:]) for head, _, detail in parts)


def curves(
    dial: pd.DataFrame, measures: Sequence[Measure] = DIAL_MEASURES
) -> tuple[tuple[Series, ...], pd.DataFrame]:
    """The dial's table as named curves: the mean of the draws, and 2.5 % to 97.5 % of several.

    Beside them stands the value without steering, on the same prompts.
    """
    found, tables = [], []
    columns = [measure.column for measure in measures]
    for (way, label), name in named(dial).items():
        rows = dial.loc[(dial["way"] == way) & (dial["prompt_class"] == label)]
        if rows.empty:
            continue
        start = _unsteered(dial, way, label)
        groups = rows.groupby("angle_deg", sort=True)
        table = groups.agg(n=("n", "first"), draws=("draw", "size"))
        for column in columns:
            table[column] = groups[column].mean()
            tail = (1 - CONFIDENCE) / 2
            for suffix, share in (("low", tail), ("high", 1 - tail)):
                bound = groups[column].quantile(share)
                table[f"{column}_{suffix}"] = bound.where(table["draws"] > 1)
            table[f"{column}_unsteered"] = start[column]
        table = table.reset_index()
        if way == ALL_SITES:  # which starts from the unsteered model, measured once
            first = {"angle_deg": 0.0, "n": start["n"], "draws": 1}
            first |= {column: start[column] for column in columns}
            first |= {f"{column}_unsteered": start[column] for column in columns}
            table = pd.concat([pd.DataFrame([first]), table], ignore_index=True)
        tables.append(table.assign(series=name))
        role: Role = "harmless" if label == "negative" else _ROLES[way]
        found.append(Series(name, role, label))
    return tuple(found), pd.concat(tables, ignore_index=True)


def samples(responses: pd.DataFrame) -> pd.DataFrame:
    """The answers as the report takes them: those at 0 degrees are the unsteered ones."""
    still = responses["angle_deg"] == 0
    arm = np.where(still, UNSTEERED, HEADINGS[METHOD, "positive"])
    table = responses.assign(arm=arm, part="test", angle_deg=responses["angle_deg"].mask(still))
    return table if "shortened" in table else table.assign(shortened=False)


def _unsteered(dial: pd.DataFrame, way: str, label: str) -> pd.Series:
    """Where the rotations of these prompts start from."""
    few = way in (SAME, *RANDOM)
    own = (dial["way"] == (SAME if few else METHOD)) & (dial["prompt_class"] == label)
    return dial.loc[own & (dial["angle_deg"] == 0)].iloc[0]


def _with_results(contents: Contents, run: Run) -> tuple[Contents, list[str]]:
    told, columns = [], all_columns()
    classes = {str(label): word for label, word in run.measures.words.items()}
    asked = dial_measures(run.measures.score, run.measures.heading)
    table = samples(run.responses)
    wanted = {**headings(), "opening_mass": "opening mass", "collapsed": "collapsed"}
    if run.measures.mass is None:  # a score of answers has none
        del wanted["opening_mass"]
    shown = {name: heading for name, heading in wanted.items() if name in table}
    defined = [name for name in shown if name == "collapsed" or not columns[name].undefined]
    told += notes.about_values(table, defined, "the answers") + notes.about_prompts(table, classes)
    if run.measures.is_refusal:
        told += notes.about_refusals(table)
    contents = replace(
        contents,
        configuration={**_followed(run), **contents.configuration},
        verdict=said(run.verdict),
        classes=classes,
        samples=table,
        moved=run.moved.assign(
            arm=HEADINGS[METHOD, "positive"], part="test", prompt_class="negative"
        ),
        scores=shown,
        still=(HEADINGS[METHOD, "positive"],),
        tables=(score_table(run.scores, run.measures), *choice_table(run.choices, run.measures)),
    )
    if run.dial.empty:
        told.append(
            "This run was made by an earlier version, which measured no dial and no controls; run "
            "it again into another --out to have them."
        )
        return replace(contents, start_deg=float(run.scores["angle_deg"].max())), told
    if run.measures.mass is None:  # a score of answers has none
        asked = asked[:1]
    told += notes.about_values(run.dial, [m.column for m in asked], "the dial")
    series, drawn = curves(run.dial, asked)
    chosen = [*chosen_angles(run.choices).values()]
    start = chosen[0] if chosen else 0.0
    return replace(contents, series=series, curves=drawn, measures=asked, start_deg=start), told


def _followed(run: Run) -> dict[str, str]:
    """What is followed, and who says that an answer refuses or shows it."""
    named, measures = judges(run), run.measures
    if measures.is_refusal:
        return named
    reads = "a score above 0"
    if measures.reads:
        reads = "a judge" if run.shown_by else "what reads its answers"
    return {"behaviour": f"{measures.behaviour}; “{measures.shown}” is by {reads}", **named}


def _with_ablations(
    contents: Contents, folder: Path, asked: AblationConfig, calibration: Calibration
) -> Contents:
    """With the table of the ablations of this calibration, if they lie beside the run."""
    if calibration.recipe.rule != Discriminative():
        return contents  # the ablations' full method has the paper's rule
    found = beside(folder, asked, len(calibration.selected_sites))
    if found is None:
        return contents
    place, result = found
    (table,) = level_tables(result)
    shown = replace(table, title=f"Ablations ({place.name})")
    command = Command("the report of the ablations", f"ss-lens report {folder.parent / place.name}")
    return replace(
        contents, tables=(*contents.tables, shown), commands=(*contents.commands, command)
    )


def _calibration(folder: Path) -> Calibration | None:
    place = folder / "calibration"
    return Calibration.load(place) if place.exists() else None
