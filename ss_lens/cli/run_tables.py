"""What the command line prints of the main job: the dial, the answers, and the verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ss_lens.cli import console

if TYPE_CHECKING:
    import pandas as pd

    from ss_lens.experiments.main_run import Run


def print_run(run: Run, run_dir: Path, as_json: bool) -> None:
    """The calibration; scores by way of steering and angle; answers at the chosen angles."""
    if as_json:
        tables = {name: _records(getattr(run, name)) for name in ("dial", "choices", "scores")}
        found = console.summary(run.calibration)
        console.print_json({**found, "run_dir": str(run_dir), **tables, "verdict": run.verdict})
        return
    console.print_facts(console.summary(run.calibration), as_json=False)
    _print_dial(run.dial)
    _print_answers(run)
    console.line(f"\n{run.verdict}")
    console.line(f"saved in {run_dir}; draw its figures with: python -m analyses {run_dir}")


def _print_dial(dial: pd.DataFrame) -> None:
    """Score and opening mass, a row per angle; of random planes the mean and the range."""
    from ss_lens.experiments.dial.scan import HEADINGS, RANDOM

    n = int(dial["n"].iloc[0])
    console.line(
        f"\nmean refusal score in nats (opening mass) on {n} harmful dev prompts; of random planes "
        "mean [least, most]"
    )
    rows = []
    for angle, at_angle in dial.groupby("angle_deg", sort=True):
        cells = []
        for way, label in HEADINGS:
            here = (at_angle["way"] == way) & (at_angle["prompt_class"] == label)
            cells.append(_dial_cell(at_angle.loc[here], drawn=way == RANDOM))
        rows.append([f"{angle:g}°", *cells])
    heads = [heading.replace(", ", ",\n") for heading in HEADINGS.values()]
    console.print_rows(["angle", *heads], rows, as_json=False)


def _dial_cell(found: pd.DataFrame, *, drawn: bool) -> str:
    if found.empty:
        return ""
    scores, mass = found["refusal_score"], found["opening_mass"].mean()
    spread = f" [{scores.min():+.1f}, {scores.max():+.1f}]" if drawn else ""
    return f"{scores.mean():+.1f}{spread} ({mass:.2f})"


def _print_answers(run: Run) -> None:
    """Refusal and coherence of the test answers: unsteered, and at the angle of each sense."""
    from ss_lens.experiments.dial.scan import chosen_angles

    scores = {row["angle_deg"]: row for row in run.scores.to_dict("records")}
    shown = {"unsteered": 0.0, **chosen_angles(run.choices)}
    n = int(run.scores["n_positive"].iloc[0]), int(run.scores["n_negative"].iloc[0])
    console.line(
        f"\nanswers to {n[0]} harmful and {n[1]} harmless test prompts, at the angles that dev "
        "chose; intervals: 95 %"
    )
    heads = ["refusal", "angle", "prompts", "refused", "score (mass)", "compression", "repetition"]
    rows = []
    for name, angle in shown.items():
        row = scores[angle]
        for label, word in (("positive", "harmful"), ("negative", "harmless")):
            first = label == "positive"
            rows.append(
                [
                    name if first else "",
                    f"{angle:g}°" if first else "",
                    word,
                    rate(row, label),
                    f"{row[f'refusal_score_{label}']:+.1f} ({row[f'opening_mass_{label}']:.2f})",
                    *(
                        _number(row[f"{column}_{label}"])
                        for column in ("compression_ratio", "repetition", "perplexity", "collapsed")
                    ),
                ]
            )
    console.print_rows([*heads, "perplexity", "collapsed"], rows, as_json=False)


def rate(row: dict[Any, Any], label: str) -> str:
    """A refusal rate with its interval."""
    low, high = row[f"refusal_{label}_low"], row[f"refusal_{label}_high"]
    return f"{row[f'refusal_{label}']:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(str(table.to_json(orient="records", double_precision=15)))
