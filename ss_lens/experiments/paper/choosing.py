"""The angle of each variant of a paper run: by score and collapse on dev, answered on test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import pandas as pd

from ss_lens.experiments.choose_angle import choose_angle
from ss_lens.experiments.grid import Arm
from ss_lens.experiments.paper.measured import Chosen, rows_of
from ss_lens.experiments.paper.plan import (
    BOTH,
    CRITERION,
    HARMFUL,
    OF_ABLATIONS,
    ON_DEV,
    ON_TEST,
    Variant,
    cells_of,
)
from ss_lens.experiments.paper.stages import Work
from ss_lens.experiments.sweeps.result import SweepResult


def choose(work: Work, plan: tuple[Variant, ...], scan: SweepResult) -> tuple[Chosen, ...]:
    """Each variant's best cell on dev whose answers have not collapsed.

    Where none of the first ``tries`` is, it is the best one, and the tables say so.
    """
    ranked = {variant: _ranked(variant, scan) for variant in plan}
    pending = {variant: cells for variant, cells in ranked.items() if cells}
    chosen: dict[Variant, Chosen] = {}
    tried: dict[Variant, list[Chosen]] = {variant: [] for variant in pending}
    tries = work.config.size.tries
    for rank in range(max(variant.most_tries(tries) for variant in pending)):
        at = {
            variant: cells[rank]
            for variant, cells in pending.items()
            if rank < min(len(cells), variant.most_tries(tries)) and variant not in chosen
        }
        if not at:
            break
        answered = _answered_on_dev(work, at)
        for variant, (arm, angle, _) in at.items():
            rows = rows_of(answered, arm, angle)
            choice = choose_angle(rows, CRITERION)
            numbers = choice.dev.to_dict("records")[0]
            found = Chosen(variant, arm, angle, choice.angle_deg is not None, numbers)
            tried[variant].append(found)
            if found.admissible:
                chosen[variant] = found
    return tuple(chosen.get(variant) or tried[variant][0] for variant in pending)


def _answered_on_dev(work: Work, at: Mapping[Variant, tuple[Arm, float, float]]) -> pd.DataFrame:
    """Of the methods to both classes; of the ablations to harmful prompts, as on test."""
    parts = []
    for table, prompt_class in (("methods", BOTH), ("ablations", HARMFUL)):
        pairs = [cell[:2] for variant, cell in at.items() if variant.table == table]
        if pairs:
            parts.append(work.sweep(cells_of(pairs), "dev", ON_DEV, prompt_class).table)
    # An arm may stand in both tables.
    return pd.concat(parts, ignore_index=True).drop_duplicates(
        [*asdict(work.full), "angle_deg", "prompt_class", "prompt_index"], ignore_index=True
    )


def answer_on_test(work: Work, chosen: tuple[Chosen, ...]) -> SweepResult:
    """The methods on both classes, the ablations on harmful prompts alone."""
    methods = cells_of((made.arm, made.angle_deg) for made in chosen if made.table == "methods")
    others = cells_of(
        (made.arm, made.angle_deg)
        for made in chosen
        if made.angle_deg not in methods.get(made.arm, ())
    )
    found = work.sweep(methods, "test", ON_TEST)
    if not others:
        return found
    more = work.sweep(others, "test", OF_ABLATIONS, HARMFUL)
    return replace(
        found,
        table=pd.concat([found.table, more.table], ignore_index=True),
        groups=pd.concat([found.groups, more.groups], ignore_index=True),
    )


def _ranked(variant: Variant, scan: SweepResult) -> list[tuple[Arm, float, float]]:
    """Arms and angles from the lowest mean refusal score of harmful dev prompts on."""
    found = []
    for arm, angles in variant.cells.items():
        rows = rows_of(scan.table, arm).query("prompt_class == 'positive'")
        means = rows.groupby("angle_deg")["refusal_score"].agg("mean").to_dict()
        found += [(arm, angle, means[angle]) for angle in angles if angle in means]
    return sorted(found, key=lambda cell: (cell[2], min(cell[1], -cell[1] % 360), cell[1]))
