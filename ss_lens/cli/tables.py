"""What the command line prints of sweeps and ablations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ss_lens.cli import console

if TYPE_CHECKING:
    import pandas as pd

    from ss_lens.experiments.ablations.result import AblationResult
    from ss_lens.experiments.summaries import Read
    from ss_lens.experiments.sweeps.result import SweepResult


def judges_json(result: Read) -> dict[str, str]:
    """Who says ``refused`` and who says ``shown``; empty where no table of the result has it."""
    return {"refused_by": result.refused_by, "shown_by": result.shown_by}


def print_judges(result: Read) -> None:
    """A line for each of them."""
    from ss_lens.experiments.summaries import read_by

    for column, by in read_by(result).items():
        console.line(f"{column}: by {by}")


def print_sweep(result: SweepResult, folder: Path, as_json: bool) -> None:
    """A row per cell, the chosen angles, and what could not be computed."""
    import pandas as pd

    from ss_lens.experiments.grid import ARM_COLUMNS
    from ss_lens.experiments.sweeps.tables import by_cell, unsteered_by_class
    from ss_lens.scoring.registry import headings

    cells, baseline = by_cell(result.table), unsteered_by_class(result.unsteered)
    problems = result.groups.query("problem.notna()").drop_duplicates([*ARM_COLUMNS])
    if as_json:
        choices = [{"arm": str(made.arm), **made.choice.as_json()} for made in result.choices]
        console.print_json(
            {
                "folder": str(folder),
                "cells": _records(cells),
                "unsteered": _records(baseline),
                "choices": choices,
                "problems": _records(problems),
                **judges_json(result),
            }
        )
        return
    # What is the same in all rows is said by the configuration.
    told = [name for name in ARM_COLUMNS if result.groups[name].astype(str).nunique() > 1]
    shown = {name: heading for name, heading in headings().items() if name in cells}
    keys = [*told, "part", "prompt_class", "angle_deg", "n"]
    # The model without steering comes first; it has a model and a dataset, and nothing else of an
    # arm, nor an angle.
    cells = pd.concat([baseline.reindex(columns=cells.columns), cells], ignore_index=True)
    rows = [
        [*(_placed(key, row[key]) for key in keys), *(_number(row[name]) for name in shown)]
        for row in cells.to_dict("records")
    ]
    console.print_rows([*keys, *shown.values()], rows, as_json=False)
    print_judges(result)
    for made in result.choices:
        named = ", ".join(_text(getattr(made.arm, name)) for name in told)
        console.line(f"chosen on dev{f' for {named}' if named else ''}: {made.choice}")
    for row in problems.to_dict("records"):
        named = ", ".join(_text(row[name]) for name in told)
        console.line(f"not computed{f': {named}' if named else ''}: {row['problem']}")
    console.line(f"saved in {folder}; read it with ss_lens.load_sweep({str(folder)!r})")


def print_ablations(result: AblationResult, folder: Path, as_json: bool) -> None:
    """A table per prompt class: means, intervals, and what differs."""
    from ss_lens.experiments.ablations.variants import HEADINGS

    if as_json:
        names = ("table", "choices", "problems")
        parts = {name: _records(getattr(result, name)) for name in names}
        console.print_json({"folder": str(folder), **parts, **judges_json(result)})
        return
    # An ablation of an earlier version may lack a score that was added since.
    headed = {k: v for k, v in HEADINGS.items() if (result.table["metric"] == k).any()}
    tables: dict[str, dict[str, dict[str, dict[Any, Any]]]] = {}
    for row in result.table.to_dict("records"):
        table = tables.setdefault(row["prompt_class"], {})
        table.setdefault(row["variant"], {})[row["metric"]] = row
    places = {"angles_deg": "angle (°)", "shares": "of resamples", "n_sites": "sites"}
    # Nor has one how often dev would choose the same angle.
    heads = [head for name, head in places.items() if name in result.table]
    for prompt_class, table in tables.items():
        n = max(row["n"] for of_variant in table.values() for row in of_variant.values())
        console.line(f"\n{n} {prompt_class} test prompts, each variant at its angle from dev")
        rows = []
        for variant, by_metric in table.items():
            first = next(iter(by_metric.values()))
            cells = [_with_interval(by_metric[name], n) for name in headed]
            drawn = [_in_short(first[name]) for name in places if name in first]
            rows.append([variant, *drawn, *cells])
        console.print_rows(["variant", *heads, *headed.values()], rows, as_json=False)
    console.line(
        "\n* differs from the full method on the same prompts: sign-flip permutation test, Holm's "
        "p < 0.05 over the variants of a column. Of resamples: the share of the resamples of dev's "
        "prompts in which this angle has the best score."
    )
    print_judges(result)
    for row in result.problems.to_dict("records"):
        console.line(f"{row['variant']}, draw {row['draw']}: {row['problem']}")
    console.line(f"saved in {folder}; draw its figures with: python -m analyses.ablations {folder}")


def _with_interval(row: dict[Any, Any], n: int) -> str:
    """Mean, star and interval; with the number of prompts where some have no value."""
    star = "*" if row["p_holm"] < 0.05 else ""
    fewer = f"\n(n = {row['n']})" if row["n"] < n else ""
    return f"{_number(row['mean'])}{star}\n[{_number(row['low'])}, {_number(row['high'])}]{fewer}"


def _in_short(numbers: str) -> str:
    """One number per draw: the number where all are equal, else the smallest and the largest."""
    values = sorted(map(float, numbers.split(", ")))
    return "–".join(dict.fromkeys(_text(value) for value in (values[0], values[-1])))


def _number(value: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"


def _placed(key: str, value: Any) -> str:
    """What a row is; one without an angle is of the model without steering."""
    if value is None or value != value:  # NaN
        return "unsteered" if key == "angle_deg" else ""
    return _text(value)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(str(table.to_json(orient="records", double_precision=15)))
