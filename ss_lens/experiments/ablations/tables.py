"""The tables of an ablation: rows by variant and draw, choices on dev, comparison on test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from ss_lens.experiments.ablations import variants
from ss_lens.experiments.ablations.variants import FULL, HEADINGS, METRICS
from ss_lens.experiments.choose_angle import AngleCriterion, choose_angle
from ss_lens.experiments.config import Grid
from ss_lens.experiments.grid import ARM_COLUMNS
from ss_lens.experiments.sweeps.result import SweepResult
from ss_lens.scoring.coherence import collapse
from ss_lens.stats.choice_shares import scan_shares
from ss_lens.stats.paired import compare

Item = tuple[str, int]
"""A variant and the number of its draw."""


def named(rows: pd.DataFrame, grids: Mapping[Item, Grid]) -> pd.DataFrame:
    """The rows of a sweep with their ``variant`` and ``draw``."""
    arms = pd.DataFrame(
        [
            {**asdict(arm), "variant": variant, "draw": draw}
            for (variant, draw), grid in grids.items()
            for arm in grid.arms()
        ]
    )
    arms = arms.astype({"seed": "Int64"})
    return rows.merge(arms, how="left", on=[*ARM_COLUMNS], validate="m:1")


def by_item(rows: pd.DataFrame) -> dict[Item, pd.DataFrame]:
    """The rows of each draw of each variant."""
    places = rows[["variant", "draw"]].drop_duplicates().itertuples(index=False, name=None)
    return {
        (variant, draw): rows.query("variant == @variant and draw == @draw")
        for variant, draw in places
    }


def tried_on_dev(item: Item, rows: pd.DataFrame, asked: AngleCriterion) -> dict[str, Any]:
    """Whether :func:`choose_angle` takes an angle by dev's answers there."""
    choice = choose_angle(rows, asked)
    (tried,) = choice.dev.to_dict("records")
    return {
        "variant": item[0],
        "draw": item[1],
        "angle_deg": tried["angle_deg"],
        "score": tried["score"],
        "collapsed": tried["collapsed"],
        "chosen": choice.angle_deg is not None,
    }


def choice_shares(choices: pd.DataFrame, scan: pd.DataFrame, asked: AngleCriterion) -> list[float]:
    """Of each row, how often its angle is the variant's best; one that was ruled out is never."""
    found: dict[tuple[Item, float], float] = {}
    for item, rows in by_item(choices).items():
        here = scan.query("variant == @item[0] and draw == @item[1]")
        shares = scan_shares(
            here,
            asked.score,
            asked.prompt_class,
            lowest=asked.goal == "minimise",
            barred=[*rows.loc[~rows["chosen"], "angle_deg"]],
        )
        found |= {(item, angle): share for angle, share in shares.items()}
    return [
        found.get(((row["variant"], row["draw"]), row["angle_deg"]), 0.0)
        for row in choices.to_dict("records")
    ]


def compared(
    tested: SweepResult, grids: Mapping[Item, Grid], choices: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """The paired comparison on test, with the angles and numbers of sites of each variant."""
    cells = named(tested.table, grids)
    cells = cells.assign(collapsed=collapse(cells, variants.CRITERION.rule)["collapsed"])
    n_sites = named(tested.groups, grids).groupby(["variant", "draw"])["n_sites"].first()
    angles = cells.groupby(["variant", "draw"])["angle_deg"].first()
    own = METRICS if "refusal_score" in cells else HEADINGS
    metrics = [name for name in own if name in cells]
    table = compare(cells, metrics, FULL, seed=seed)
    shares = (
        choices[choices["chosen"]].set_index(["variant", "draw"])["share"].reindex(angles.index)
    )
    for name, values in (("shares", shares), ("n_sites", n_sites), ("angles_deg", angles)):
        texts: dict[str, list[str]] = {}
        for variant, value in zip(values.index.get_level_values("variant"), values, strict=True):
            texts.setdefault(variant, []).append(f"{value:g}")
        table.insert(1, name, [", ".join(texts[variant]) for variant in table["variant"]])
    return table


def problem_table(problems: Mapping[Item, str]) -> pd.DataFrame:
    """A row per draw without answers, and why."""
    rows = [(variant, draw, told) for (variant, draw), told in sorted(problems.items())]
    return pd.DataFrame(rows, columns=["variant", "draw", "problem"]).astype({"draw": int})
