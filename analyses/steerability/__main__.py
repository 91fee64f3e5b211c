"""``python -m analyses.steerability``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import ss_lens
from analyses import output
from analyses.grouped import groups
from analyses.steerability.conclusions import findings
from analyses.steerability.figures import figure
from analyses.steerability.measures import Goal, measure, summarise
from analyses.steerability.questions import Question, read_sets
from analyses.steerability.scored import check_enough, of_questions, of_sweep
from analyses.steerability.surface import explained, surface_of
from analyses.steerability.transfer import transfer
from ss_lens import UserError
from ss_lens.calibration.site_selection import as_rule
from ss_lens.core.checks import check_whole
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    sweep: Annotated[Path | None, typer.Option(help="Folder of a stored sweep.")] = None,
    questions: Annotated[
        list[Path] | None, typer.Option(help="Multiple-choice .jsonl; may be repeated.")
    ] = None,
    model: output.Model = DEFAULT_MODEL,
    score: Annotated[str, typer.Option(help="Column of the sweep.")] = "refusal_score",
    goal: Annotated[
        str, typer.Option(help="raise or lower: what more turning should do.")
    ] = "lower",
    low: Annotated[float, typer.Option("--from", help="Degrees.")] = 0,
    high: Annotated[float, typer.Option("--to", help="Degrees.")] = 180,
    step: Annotated[float, typer.Option(help="Degrees, for questions.")] = 45,
    train: Annotated[int, typer.Option(help="Questions per set to calibrate on.")] = 100,
    test: Annotated[int, typer.Option(help="Questions per set to score.")] = 100,
    system: Annotated[
        list[str] | None, typer.Option(help="Also under this system prompt; may be repeated.")
    ] = None,
    across: Annotated[bool, typer.Option(help="Also by the calibrations of other sets.")] = False,
    rule: Annotated[str, typer.Option(help="Sites for questions: site, block, uniform …")] = "site",
    seed: Annotated[int, typer.Option(help="Of bootstrap and permutations.")] = 0,
    out: output.Out = Path("runs/steerability"),
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Slope of the score over the angle, prompt by prompt: spread, wrong way, surface, transfer."""
    chosen, wanted = output.checked(formats), _goal(goal)
    if (sweep is None) == (not questions):
        raise UserError(
            "steerability is measured on a stored sweep or on questions; give --sweep FOLDER or "
            "--questions FILE, and not both."
        )
    features: dict[str, list[Question]] = {}
    if sweep is not None:
        scores, by = of_sweep(sweep, (low, high), score)
        subtitle = f"{sweep}, {low:g}° to {high:g}°; {score}, to {goal}"
    else:
        angles = output.scan(low, high, step)
        as_rule(rule)
        features = read_sets(questions or ())
        if across and len(features) < 2:
            raise UserError(
                "--across steers each set by the calibrations of the others, expected two files of "
                "questions or more; got one. Give another --questions, or leave it out."
            )
        check_whole("--train", train, at_least=1)
        check_whole("--test", test, at_least=3)
        check_enough(features, train, test)
        loaded = ss_lens.load_model(model, dtype=dtype)
        scores = of_questions(
            *(loaded, features, ss_lens.RotateBy, angles),
            n_train=train,
            n_test=test,
            systems=system or (),
            across=across,
            rule=rule,
        )
        varied = {"dataset": True, "calibrated_on": across, "system": bool(system)}
        score, by = "matching_score", [name for name, is_varied in varied.items() if is_varied]
        subtitle = (
            f"{model}; rotate_by {angles[0]:g}° to {angles[-1]:g}°; matching answer, to {goal}"
        )
    slopes = measure(scores, wanted, score=score, by=by)
    output.save(out, "steerability", slopes, figure(slopes, subtitle, by=by, seed=seed), chosen)
    summary = summarise(slopes, by=by, seed=seed)
    surface = _surface(slopes, by, features, train, seed)
    transferred = _transfer(slopes, by, seed)
    for name, table in (("summary", summary), ("surface", surface), ("transfer", transferred)):
        if table is not None:
            table.to_csv(out / f"steerability_{name}.csv", index=False)
    for finding in findings(summary, surface, transferred, by=by):
        print(f"- {finding}")


def _goal(text: str) -> Goal:
    for goal in ("raise", "lower"):
        if text == goal:
            return goal
    raise UserError(f"--goal must be raise or lower; got {text!r}.")


def _surface(
    slopes: pd.DataFrame, by: list[str], files: dict[str, list[Question]], train: int, seed: int
) -> pd.DataFrame | None:
    """What surface explains in each group whose prompts differ in it and in their slopes."""
    parts = []
    for place, rows in groups(slopes, by):
        if files:
            asked = files[str(place[by.index("dataset")])][train:]
            features = pd.DataFrame([asked[i].surface for i in rows["prompt_index"]])
        else:
            features = surface_of(rows["prompt"].tolist())
        if (
            len(rows) < 3
            or len(set(rows["toward"])) < 2
            or all(len(set(features[name])) < 2 for name in features)
        ):
            continue
        found = explained(rows["toward"], features, seed=seed)
        parts.append(found.assign(**dict(zip(by, place, strict=True))))
    return pd.concat(parts, ignore_index=True) if parts else None


def _transfer(slopes: pd.DataFrame, by: list[str], seed: int) -> pd.DataFrame | None:
    """Between system prompts where there are several, else between calibrations."""
    for condition in ("system", "calibrated_on"):
        if condition in by:
            others = [name for name in by if name != condition]
            return transfer(slopes, condition, among=others, seed=seed)
    return None


if __name__ == "__main__":
    output.command(main)
