"""The main job: the dial and its controls, an angle from dev, answers to test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.capture import capture
from ss_lens.activations.store import Store
from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.core.checks import check_is, check_path
from ss_lens.core.errors import UserError
from ss_lens.core.progress import progress_bar
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.dial.answers import scored_answers
from ss_lens.experiments.dial.asking import asking_of, scan_asking
from ss_lens.experiments.dial.config import RunConfig
from ss_lens.experiments.dial.folder import FINISHED, check_run_dir, claim, finish
from ss_lens.experiments.dial.moved import moved_tokens
from ss_lens.experiments.dial.run import Run
from ss_lens.experiments.dial.scan import (
    COLLAPSE,
    PROMPT_CLASSES,
    choose_angles,
    chosen_angles,
    controls,
    dial_table,
    method,
    one_pass,
    scan_controls,
    scan_method,
)
from ss_lens.experiments.dial.verdict import verdict
from ss_lens.experiments.dial.ways import METHOD
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Workbench
from ss_lens.experiments.summaries import shown_by
from ss_lens.models.chat import check_context, tokenize
from ss_lens.scoring.coherence import collapse
from ss_lens.scoring.registry import ROW
from ss_lens.stats.intervals import wilson_interval

PROMPTS_PER_CHUNK = 12
"""So many prompts at all chosen angles are answered together, and kept when they are finished."""
COHERENCE = ("compression_ratio", "repetition", "non_latin_share")
BY_CLASS = ("opening_mass", "perplexity", "collapsed")


def run_main_job(
    model: TransformerBridge,
    dataset: ContrastiveDataset | Behaviour,
    run_dir: Path | str,
    config: RunConfig | None = None,
    *,
    store: Store | None = None,
) -> Run:
    """Calibrate on the train part of ``dataset`` and measure Selective Steering on its test part.

    A dataset is of refusal; a :class:`ss_lens.Behaviour` brings its own prompts and scores. It is
    weakened on its positive prompts and strengthened on its negative ones, refusal on harmful
    ones in both senses.

    On the dev part the method's score is measured at all angles, beside all sites, Standard
    Angular Steering and random planes, uniform and of equal energy, and beside the unsteered model
    with system prompts that ask for the same; an angle is chosen for each sense, weaker and
    stronger, among those at which few answers collapse. At these and
    unsteered, the test prompts are answered. What is finished is kept in ``run_dir``, so a run that
    was stopped resumes where it stopped, and a repeated run does no work.

    Raises:
        UserError: whatever capture, calibration or generation object to, or a ``run_dir`` that
            holds something else.
    """
    check_is("model", model, (TransformerBridge,), "a model from ss_lens.load_model(...)")
    made = "a dataset from ss_lens.load_dataset(...)"
    check_is("dataset", dataset, (ContrastiveDataset, Behaviour), made)
    check_path("run_dir", run_dir)
    check_is("config", config, (RunConfig, type(None)), "a RunConfig(...), or None")
    check_is("store", store, (Store, type(None)), "a ss_lens.Store(), or None")
    config = RunConfig() if config is None else config
    store = Store() if store is None else store
    folder = Path(run_dir)
    behaviour = dataset if isinstance(dataset, Behaviour) else None
    dataset = dataset.dataset if isinstance(dataset, Behaviour) else dataset
    asked = check_run_dir(folder, dataset, config, behaviour)  # before the slow part
    judge = shown_by(behaviour)  # which may fail at its rubric
    if behaviour is not None and not (folder / FINISHED).exists():
        behaviour.check_openings(model)
        behaviour.check_ready()
    names = str(model.cfg.model_name), dataset.name
    bench = Workbench.holding(config.sweep(*names), store, model, dataset, behaviour)
    parts = dataset.split(dev=config.dev, test=config.test, seed=config.seed)
    for prompts in (getattr(p, c) for p in (parts.dev, parts.test) for c in PROMPT_CLASSES):
        check_context(model, tokenize(model, prompts, config.chat), prompts, config.max_new_tokens)
    arm = method(*names, config.rule)
    first = bench.setting(CellGroup(arm, "test", "positive", (0.0,)))
    shown = capture(model, parts.test, store=store, chat=config.chat)  # for the figures
    keys = {"train": str(first.identity["train"]), "test": shown.spec.key}
    claim(folder, {**asked, "activations": keys})
    first.calibration.save(folder / "calibration", overwrite=True)
    cells = CellStore.claim(folder / "answers")
    cut = not config.keep_answers
    scanned = scan_method(bench, cells, arm, sorted({0.0, *config.angles_deg}), shorten=cut)
    sites = ",".join(map(str, first.calibration.selected_sites))
    choices = choose_angles(bench, cells, arm, scanned, shorten=cut)
    drawn = controls(arm, sites, config.draws)
    beside = scan_controls(bench, cells, drawn, scanned, choices, shorten=cut)
    dial, measures = dial_table([scanned, beside], bench.measures), bench.measures
    asked = scan_asking(bench, cells, arm, shorten=cut)
    angles = sorted({0.0, *chosen_angles(choices).values()})
    responses = _responses(bench, cells, arm, angles, config)
    moved = moved_tokens(bench, cells, arm, responses, angles)
    scores = score_by_angle(responses, measures)
    compared = asked if any(asking_of(bench).values()) else None
    said = verdict(scores, dial, choices, compared, measures)
    tables = (responses, scores, dial, choices, asked, moved)
    finish(folder, tables, said, judge)
    return Run(config, first.calibration, keys, *tables, said, measures, judge)


def score_by_angle(responses: pd.DataFrame, measures: Measures = REFUSAL) -> pd.DataFrame:
    """One row per angle: refusal rate of each class with its 95 % Wilson interval, and coherence.

    ``compression_ratio``, ``repetition`` and ``non_latin_share`` are means over the answers to the
    positive class; answers too short for a score are left out of its mean. Where the responses have
    them there are also, of each class, ``refusal_score``, ``opening_mass``, ``perplexity``,
    ``collapsed`` and the means over its texts, as ``refusal_score_positive`` and so on, and
    ``collapsed`` of both. Another behaviour has its own names (:class:`Measures`).
    """
    rows = []
    for angle, group in responses.groupby("angle_deg", sort=True):
        row: dict[str, float] = {"angle_deg": cast(float, angle)}
        for label in PROMPT_CLASSES:
            of_class = group[group["prompt_class"] == label]
            shown = of_class.loc[:, measures.shown].dropna()
            if shown.empty and len(of_class):
                raise UserError(
                    f"the score of the behaviour {measures.behaviour!r} is NaN for all "
                    f"{len(of_class)} {label} answers at {angle:g}°, expected a number for some; "
                    "mend what reads the answers, or raise max_new_tokens."
                )
            stem = f"{measures.rate}_{label}"
            row[stem] = float(shown.mean())
            row[f"{stem}_low"], row[f"{stem}_high"] = wilson_interval(int(shown.sum()), len(shown))
            row[f"n_{label}"] = len(shown)
            if "collapsed" in group:
                for column in (measures.score, *BY_CLASS, *COHERENCE):
                    row[f"{column}_{label}"] = float(of_class[column].mean())
        if "collapsed" in group:
            row["collapsed"] = float(group["collapsed"].mean())
        positive = group[group["prompt_class"] == "positive"]
        for column in COHERENCE:
            row[column] = float(positive[column].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _responses(
    bench: Workbench, cells: CellStore, arm: Arm, angles_deg: Sequence[float], config: RunConfig
) -> pd.DataFrame:
    """The answers to the test prompts with all scores, computed a few prompts at a time."""
    groups = [CellGroup(arm, "test", label, tuple(angles_deg)) for label in PROMPT_CLASSES]
    sizes, tables = [len(bench.setting(group).prompts) for group in groups], []
    with progress_bar(sum(sizes), "answer", "prompt") as bar:
        for group, n_prompts in zip(groups, sizes, strict=True):
            label = group.prompt_class
            shorten = label == "positive" and not config.keep_answers
            for start in range(0, n_prompts, PROMPTS_PER_CHUNK):
                setting = bench.setting(group, slice(start, start + PROMPTS_PER_CHUNK))
                rows = scored_answers(setting, angles_deg, cells, shorten=shorten, perplexity=True)
                rows = rows.assign(prompt_index=rows["prompt_index"] + start)
                rows.insert(len(ROW) + 1, "prompt_class", label)
                tables.append(rows)
                bar.update(len(setting.prompts))
    table = pd.concat(tables, ignore_index=True)
    table["collapsed"] = collapse(table, COLLAPSE)["collapsed"]
    measures = bench.measures
    if measures.mass is None:
        return table.assign(opening_mass=math.nan)
    named = [({"way": METHOD, "draw": 0}, group) for group in groups]
    passes = one_pass(bench, cells, named)[[*ROW, "prompt_class", measures.score, "opening_mass"]]
    table = table.merge(passes, on=[*ROW, "prompt_class"], validate="1:1")
    return table if measures.reads else table.assign(shown=table[measures.score] > 0)
