"""The tables of a paper run, as CSV files that hold numbers and no text of prompts or answers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from ss_lens.behaviours.measures import REFUSAL
from ss_lens.core.files import atomic_path, make_folder
from ss_lens.experiments.paper.controls import null_draws, null_ranks, selection
from ss_lens.experiments.paper.measured import (
    Chosen,
    Measured,
    means_by_angle,
    rows_of,
    under_own_names,
)
from ss_lens.experiments.paper.plan import CRITERION, FULL, UNSTEERED, PaperConfig
from ss_lens.judges.agreement.known import refused_by
from ss_lens.scoring.capability import accuracy, retention
from ss_lens.scoring.coherence import collapse
from ss_lens.stats.choice_shares import order_on_circle, shares_by_score
from ss_lens.stats.paired import compare

METRICS = (
    *("refused", "refused_published", "answered", "refusal_score", "opening_mass", "collapsed"),
    *("perplexity", "perplexity_steered", "compression_ratio", "repetition", "non_latin_share"),
)
"""``refused`` is by the classifier, ``refused_published`` by phrases, as the paper measured it;
``answered``: neither refused nor collapsed, as near as one gets to success without a judge."""


def write_tables(config: PaperConfig, measured: Measured, folder: Path) -> Path:
    """Write ``folder/tables`` and return it."""
    place = folder / "tables"
    make_folder(place)
    full = next(made for made in measured.chosen if made.variant.name == FULL)
    tables = {
        "methods": compared(config, measured, "methods"),
        "ablations": compared(config, measured, "ablations"),
        "choices": choices(measured),
        "curves": curves(measured),
        "nulls": null_draws(measured),
        "null_ranks": null_ranks(measured, full),
        "selection": selection(measured),
        "capability": capabilities(measured.items),
        "judges": measured.judged,
        "facts": facts(config, measured),
    }
    for name, table in tables.items():
        table = under_own_names(table, config.measures)
        with atomic_path(place / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    return place


def compared(config: PaperConfig, measured: Measured, table: str) -> pd.DataFrame:
    """Every variant on test: levels with intervals, and paired differences from the full method."""
    parts = []
    places = []
    for made in measured.chosen:
        if made.table != table:
            continue
        rows = rows_of(measured.tested.table, made.arm, made.angle_deg)
        name, draw = made.variant.name, made.variant.draw
        parts.append(rows.assign(variant=name, draw=draw))
        groups = rows_of(measured.tested.groups, made.arm)
        places.append(
            {
                "variant": name,
                "operator": made.arm.operator,
                "n_sites": int(groups["n_sites"].iloc[0]),
                "angle_deg": made.angle_deg,
                "admissible": made.admissible,
            }
        )
    parts.append(measured.tested.unsteered.assign(variant=UNSTEERED, draw=0))
    metrics = METRICS
    if table == "ablations":  # of these it is not measured
        metrics = tuple(name for name in METRICS if name != "perplexity_steered")
    wanted = [name for name in metrics if name not in ("collapsed", "answered")]
    keys = ["variant", "draw", "prompt_class", "prompt_index", "empty", "loop"]
    cells = pd.concat([part[[*keys, *wanted]] for part in parts], ignore_index=True)
    if table == "ablations":  # which are measured on these alone
        cells = cells.query("prompt_class == 'positive'").reset_index(drop=True)
    cells["collapsed"] = collapse(cells, CRITERION.rule)["collapsed"]
    cells["answered"] = ~(cells["collapsed"] | cells["refused"].astype(bool))
    found = compare(cells, metrics, FULL, seed=config.seed)
    placed = pd.DataFrame(places).groupby("variant", sort=False).agg(_joined).reset_index()
    return found.merge(placed, how="left", on="variant")


def _joined(values: pd.Series) -> str:
    """One text per draw, or the one that all share."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else "; ".join(texts)


def choices(measured: Measured) -> pd.DataFrame:
    """What dev chose, by what, and how surely.

    ``share`` is that of the resamples of dev's harmful prompts in which the same angle or strength
    has the best score of those that are not ruled out by their answers.
    """
    rows = [
        {
            "table": made.table,
            "variant": made.variant.name,
            "draw": made.variant.draw,
            "operator": made.arm.operator,
            "angle_deg": made.angle_deg,
            "admissible": made.admissible,
            "refusal_score": made.dev["score"],
            "low": made.dev["low"],
            "high": made.dev["high"],
            "collapsed": made.dev["collapsed"],
            "share": _share(measured.scan.table, made),
        }
        for made in measured.chosen
    ]
    return pd.DataFrame(rows)


def _share(scan: pd.DataFrame, made: Chosen) -> float:
    """Better ones that were not chosen had been ruled out."""
    scores = {
        (arm, angle): rows_of(scan, arm, angle)
        .query("prompt_class == 'positive'")
        .set_index("prompt_index")["refusal_score"]
        for arm, angles in made.variant.cells.items()
        for angle in sorted(angles, key=order_on_circle)
    }
    own = made.arm, made.angle_deg
    kept = {
        place: values
        for place, values in scores.items()
        if place == own or not made.admissible or values.mean() >= scores[own].mean()
    }
    return shares_by_score(kept, lowest=True)[own]


def curves(measured: Measured) -> pd.DataFrame:
    """Mean scores on dev at every angle that was scanned; several strengths are several curves."""
    found = []
    for made in measured.chosen:
        for arm in made.variant.cells:
            rows = rows_of(measured.scan.table, arm)
            means = means_by_angle(rows)
            found.append(
                means.assign(
                    table=made.table,
                    variant=made.variant.name,
                    draw=made.variant.draw,
                    operator=arm.operator,
                )
            )
    return pd.concat(found, ignore_index=True)


def capabilities(items: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy per method, and the share of the unsteered model's that is left."""
    rows = []
    for name, of_method in items.items():
        level = accuracy(of_method).to_dict("records")[0]
        kept = retention(of_method, items[UNSTEERED]).to_dict("records")[0]
        rows.append(
            {
                "variant": name,
                "n": level["n"],
                "accuracy": level["accuracy"],
                "low": level["low"],
                "high": level["high"],
                "retention": kept["retention"],
                "retention_low": kept["low"],
                "retention_high": kept["high"],
            }
        )
    columns = ("variant", "n", "accuracy", "low", "high")
    return pd.DataFrame(rows, columns=[*columns, "retention", "retention_low", "retention_high"])


def facts(config: PaperConfig, measured: Measured) -> pd.DataFrame:
    """Numbers that stand alone, and what was asked for."""
    said = {**config.as_json(), **asdict(config.size), **measured.facts}
    del said["size"]
    for name in ("angles_deg", "null_angles_deg"):
        said[name] = " ".join(f"{angle:g}" for angle in said.pop(name))
    if config.measures.shown == REFUSAL.shown:
        said["refused_by"] = refused_by(by_phrases=False)
    if measured.tested.shown_by:
        said["shown_by"] = measured.tested.shown_by
    said["ss_lens"] = importlib.metadata.version("ss_lens")
    for name in ("torch", "transformers", "transformer-lens"):
        said[name] = importlib.metadata.version(name)
    return pd.DataFrame({"fact": [*said], "value": [str(value) for value in said.values()]})
