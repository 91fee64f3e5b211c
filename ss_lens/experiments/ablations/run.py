"""The ablation table: the full method against variants that each lack one part of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ss_lens.activations.store import Store
from ss_lens.core.checks import check_is, check_path
from ss_lens.core.errors import UserError
from ss_lens.core.files import check_replaceable
from ss_lens.experiments.ablations import variants
from ss_lens.experiments.ablations.config import AblationConfig
from ss_lens.experiments.ablations.result import FILES, AblationResult, save
from ss_lens.experiments.ablations.tables import (
    Item,
    by_item,
    choice_shares,
    compared,
    named,
    problem_table,
    tried_on_dev,
)
from ss_lens.experiments.ablations.variants import FULL
from ss_lens.experiments.choose_angle import rank_angles
from ss_lens.experiments.config import Grid, Part
from ss_lens.experiments.sweeps.result import SweepResult
from ss_lens.experiments.sweeps.run import run_sweep


def run_ablations(
    config: AblationConfig, folder: Path | str, *, store: Store | None = None
) -> AblationResult:
    """Measure all variants; stopped at any moment, the same call resumes.

    Every variant's angle is chosen on dev alone: the least refusal of harmful prompts (of another
    behaviour, the least of it on its positive ones) among the angles at which at most a tenth of
    the answers of both classes has collapsed
    (:data:`ss_lens.experiments.ablations.variants.CRITERION`, as :func:`ss_lens.choose_angle`
    would). Refusal scores are measured at all angles, answers from the best angle on until one is
    admissible. Test is measured at the chosen angle and nowhere else.

    Args:
        config: what to measure.
        folder: of the sweep; the ablation's own files are in ``folder/ablations``.
        store: of activations; ``None`` is the user's store.

    Raises:
        UserError: the full method cannot be calibrated or has no admissible angle, or what
            :func:`ss_lens.run_sweep` raises.
    """

    def swept(grids: Mapping[Item, Grid], part: Part, scores: tuple[str, ...]) -> SweepResult:
        return run_sweep(config.sweep(grids.values(), part, scores), folder, store=store)

    check_is("config", config, (AblationConfig,), "an AblationConfig(model=...)")
    check_path("folder", folder)
    check_replaceable(Path(folder) / "ablations", FILES, "result of an ablation")
    asked = (
        variants.CRITERION if config.measures.is_refusal else variants.criterion(config.measures)
    )
    full = swept({(FULL, 0): config.grid(FULL)}, "dev", config.scanned)
    sites = f"Explicit(sites={full.groups['steered_sites'].iloc[0]!r})"
    items = [(variant, draw) for variant in variants.VARIANTS for draw in config.draws_of(variant)]
    grids = {item: config.grid(*item, sites) for item in items}
    scanned = swept(grids, "dev", config.scanned)
    scan = named(scanned.table, grids)
    ranks = {item: rank_angles(rows, asked) for item, rows in by_item(scan).items()}
    failed = named(scanned.groups, grids).query("problem.notna()")
    problems = {(r["variant"], r["draw"]): r["problem"] for r in failed.to_dict("records")}
    tried: list[dict[str, Any]] = []
    pending, rank = set(ranks), 0
    while pending:
        at_rank = {item: config.grid(*item, sites, ranks[item][rank]) for item in sorted(pending)}
        answered = named(swept(at_rank, "dev", config.chosen_by).table, at_rank)
        for item, rows in by_item(answered).items():
            tried.append(tried_on_dev(item, rows, asked))
            if tried[-1]["chosen"]:
                pending.remove(item)
        rank += 1
        for item in [item for item in pending if rank == len(ranks[item])]:
            pending.remove(item)
            problems[item] = f"no admissible angle of {rank}: at each too many answers collapse"
    choices = pd.DataFrame(tried)
    choices["share"] = choice_shares(choices, scan, asked)
    if (FULL, 0) in problems:
        raise UserError(
            f"the full method has {problems[FULL, 0]}; there is nothing to compare with. Give "
            "other angles."
        )
    chosen = {
        (r["variant"], r["draw"]): config.grid(r["variant"], r["draw"], sites, r["angle_deg"])
        for r in choices.query("chosen").to_dict("records")
    }
    chosen = {item: chosen[item] for item in items if item in chosen}
    tested = swept(chosen, "test", config.tested)
    table = compared(tested, chosen, choices, config.seed)
    told = problem_table(problems)
    result = AblationResult(config, table, scan, choices, told, shown_by=tested.shown_by)
    save(result, Path(folder) / "ablations")
    return result
