"""What the command line prints of the main job: the dial, the answers, and the verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ss_lens.cli import console
from ss_lens.cli.tables import judges_json, print_judges

if TYPE_CHECKING:
    import pandas as pd

    from ss_lens.behaviours.measures import Measures
    from ss_lens.experiments.dial.run import Run


def print_run(run: Run, run_dir: Path, report: Path | None, as_json: bool) -> None:
    """The calibration; scores by way of steering and angle; answers at the chosen angles."""
    if as_json:
        tables = {
            name: _records(getattr(run, name)) for name in ("dial", "choices", "scores", "asked")
        }
        found = console.summary(run.calibration)
        paths = {"run_dir": str(run_dir), "report": None if report is None else str(report)}
        said = {"verdict": run.verdict, **judges_json(run)}
        console.print_json({**found, **paths, **tables, **said})
        return
    console.print_facts(console.summary(run.calibration), as_json=False)
    _print_dial(run.dial, run.measures)
    _print_random_planes(run.dial, run.measures)
    _print_asked(run.asked, run.measures)
    _print_answers(run)
    console.line(f"\n{run.verdict}")
    console.line(f"saved in {run_dir}; draw its figures with: python -m analyses {run_dir}")
    if report is not None:
        console.line(f"report: {report}")


def _print_dial(dial: pd.DataFrame, measures: Measures) -> None:
    """Score and opening mass, a row per angle."""
    from ss_lens.experiments.dial.ways import HEADINGS, RANDOM, SAME

    n = int(dial["n"].iloc[0])
    told = "refusal" if measures.is_refusal else measures.behaviour
    unit = " in nats (opening mass)" if measures.mass is not None else ""
    console.line(f"\nmean {told} score{unit} on {n} {measures.words['positive']} dev prompts")
    headings = {key: text for key, text in HEADINGS.items() if key[0] not in (SAME, *RANDOM)}
    if not measures.is_refusal:
        headings = {key: text.replace("harmless", "negative") for key, text in headings.items()}
    rows = []
    for angle, at_angle in dial.groupby("angle_deg", sort=True):
        cells = []
        for way, label in headings:
            here = (at_angle["way"] == way) & (at_angle["prompt_class"] == label)
            scores, mass = at_angle.loc[here, measures.score], at_angle.loc[here, "opening_mass"]
            cells.append(_score(scores.iloc[0], mass.iloc[0]) if here.any() else "")
        rows.append([f"{angle:g}°", *cells])
    heads = [heading.replace(", ", ",\n") for heading in headings.values()]
    console.print_rows(["angle", *heads], rows, as_json=False)


def _score(score: float, mass: float) -> str:
    """A score in nats with its opening mass; one of answers has none."""
    return f"{score:+.2f}" if math.isnan(mass) else f"{score:+.1f} ({mass:.2f})"


def _print_random_planes(dial: pd.DataFrame, measures: Measures) -> None:
    """Score and opening mass in random planes, mean and range, beside the method's."""
    from ss_lens.experiments.dial.ways import RANDOM, SAME

    found = dial.loc[dial["way"].isin([SAME, *RANDOM])]
    if found.empty:
        return
    console.line(
        f"\nrandom planes at the steered sites, on {int(found['n'].iloc[0])} of these "
        f"{measures.words['positive']} prompts: mean [least, most] of the draws"
    )
    found = found.loc[found["prompt_class"] == "positive"]
    rows = []
    for angle, at_angle in found.groupby("angle_deg", sort=True):
        for place, (way, drawn) in enumerate(at_angle.groupby("way", sort=False)):
            named = "unsteered" if angle == 0 else "rotate_by" if way == SAME else str(way)
            at = "" if place else f"{angle:g}°"
            score = _spread(drawn[measures.score], "+.2f" if measures.mass is None else "+.1f")
            mass = _spread(drawn["opening_mass"], ".2f")
            rows.append([at, named, len(drawn) if way in RANDOM else "", score, mass])
    heads = ["angle", "plane", "draws", f"{measures.behaviour} score", "opening mass"]
    console.print_rows(heads, rows, as_json=False)


def _print_asked(asked: pd.DataFrame, measures: Measures) -> None:
    """What system prompts do instead of steering."""
    if asked.empty:
        return
    n = int(asked["n"].iloc[0])
    console.line(
        f"\nunsteered, asked in a system prompt, on {n} dev prompts per class; * dev's choice"
    )
    rows: list[list[str]] = []
    for _, found in asked.groupby(["sense", "system"], sort=False):
        sense, system = (str(found[name].iloc[0]) for name in ("sense", "system"))
        by_class = found.set_index("prompt_class")
        cells = [
            _score(row[measures.score], row["opening_mass"])
            for label in ("positive", "negative")
            if label in by_class.index
            for row in [by_class.loc[label]]
        ]
        mark = " *" if found["chosen"].any() else ""
        rows.append([f"{sense}{mark}", system, *cells, *[""] * (2 - len(cells))])
    scored = [f"{word}: score (mass)" for word in measures.words.values()]
    heads = [measures.behaviour, "system prompt", *scored]
    console.print_rows(heads, rows, as_json=False)


def _spread(values: pd.Series, how: str) -> str:
    mean = format(values.mean(), how)
    if len(values) == 1:
        return mean
    return f"{mean} [{values.min():{how}}, {values.max():{how}}]"


def _print_answers(run: Run) -> None:
    """Refusal and coherence of the test answers: unsteered, and at the angle of each sense."""
    from ss_lens.experiments.dial.scan import chosen_angles

    measures, words = run.measures, run.measures.words
    scores = {row["angle_deg"]: row for row in run.scores.to_dict("records")}
    shown = {"unsteered": 0.0, **chosen_angles(run.choices)}
    n = int(run.scores["n_positive"].iloc[0]), int(run.scores["n_negative"].iloc[0])
    console.line(
        f"\nanswers to {n[0]} {words['positive']} and {n[1]} {words['negative']} test prompts, at "
        "the angles that dev chose; intervals: 95 %"
    )
    heads = [measures.behaviour, "angle", "prompts", measures.shown, "score (mass)"]
    heads += ["compression", "repetition"]
    rows = []
    for name, angle in shown.items():
        row = scores[angle]
        for label, word in words.items():
            first = label == "positive"
            rows.append(
                [
                    name if first else "",
                    f"{angle:g}°" if first else "",
                    word,
                    rate(row, label, measures.rate),
                    _score(row[f"{measures.score}_{label}"], row[f"opening_mass_{label}"]),
                    *(
                        _number(row[f"{column}_{label}"])
                        for column in ("compression_ratio", "repetition", "perplexity", "collapsed")
                    ),
                ]
            )
    console.print_rows([*heads, "perplexity", "collapsed"], rows, as_json=False)
    print_judges(run)


def rate(row: dict[Any, Any], label: str, stem: str = "refusal") -> str:
    """The rate of a behaviour with its interval."""
    low, high = row[f"{stem}_{label}_low"], row[f"{stem}_{label}_high"]
    return f"{row[f'{stem}_{label}']:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(str(table.to_json(orient="records", double_precision=15)))
