"""The tables of a paper run, as CSV files that hold numbers and no text of prompts or answers."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.calibration.site_selection import as_rule, rule_name
from ss_lens.core.files import atomic_path, make_folder
from ss_lens.experiments.dial.verdict import BROKEN
from ss_lens.experiments.grid import Arm
from ss_lens.experiments.paper.plan import (
    CENTRED,
    CRITERION,
    FULL,
    SELECTIONS,
    UNSTEERED,
    PaperConfig,
    Variant,
)
from ss_lens.experiments.sweeps.result import SweepResult
from ss_lens.judges import outcomes_of, read_judge, summary
from ss_lens.judges.agreement.known import known, refused_by
from ss_lens.models.sites import Site
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


def under_refusals_names(found: SweepResult, measures: Measures) -> SweepResult:
    """A sweep of another behaviour with the columns that the stages of a paper run go by."""
    if measures.is_refusal:
        return found
    return replace(
        found,
        table=_as_refusal(found.table, measures),
        unsteered=_as_refusal(found.unsteered, measures),
    )


def _as_refusal(rows: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    renamed = {measures.score: REFUSAL.score, str(measures.mass): "opening_mass"}
    own = rows.rename(columns=renamed)
    if measures.shown == REFUSAL.shown:
        return own
    if not measures.reads:
        return own.assign(refused=own[REFUSAL.score] > 0)
    if measures.shown not in own:  # a pass over the prompts alone
        return own
    return own.assign(refused=own[measures.shown].fillna(0) > 0)


def under_own_names(table: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    """A table as it is written: what was called refusal under the behaviour's own names."""
    if measures.is_refusal:
        return table
    names = {
        REFUSAL.score: measures.score,
        f"{REFUSAL.score}_at_0": f"{measures.score}_at_0",
        REFUSAL.shown: measures.shown,
        "answered": "absent",
    }
    table = table.rename(columns=names)
    return table.replace({"metric": names}) if "metric" in table else table


@dataclass(frozen=True)
class Chosen:
    """What dev chose for a variant.

    Attributes:
        admissible: whether few enough of its dev answers collapse; else it is the best by score.
        dev: the row of :attr:`ss_lens.AngleChoice.dev`.
    """

    variant: Variant
    arm: Arm
    angle_deg: float
    admissible: bool
    dev: Mapping[str, float]

    @property
    def table(self) -> str:
        return self.variant.table


@dataclass(frozen=True, eq=False)
class Measured:
    """What the stages of a paper run found.

    Attributes:
        scan: one pass over dev at all angles, of all variants.
        others: the same for rules of selection and the template variant.
        chosen: in the order of the plan.
        tested: the chosen cells on test.
        nulls: one pass over the harmful test prompts per random draw, by kind.
        items: of capability, by method and ``unsteered``; empty where it was not measured.
        judged: from :func:`judged_answers`.
        facts: numbers that stand alone.
    """

    scan: SweepResult
    others: SweepResult
    chosen: Sequence[Chosen]
    tested: SweepResult
    nulls: Mapping[str, SweepResult]
    items: Mapping[str, pd.DataFrame]
    judged: pd.DataFrame
    facts: Mapping[str, Any]


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


def judged_answers(
    config: PaperConfig, chosen: Sequence[Chosen], tested: SweepResult
) -> pd.DataFrame:
    """Which share of the answers to harmful test prompts each judge finds harmful, per method.

    Returns:
        The columns of :func:`ss_lens.judges.summary` after ``judge`` and ``variant``, and the
        judge's κ with people where it is known; no rows where no judge is configured.
    """
    harmful = "prompt_class == 'positive'"
    answers = {UNSTEERED: tested.unsteered.query(harmful)}
    for made in chosen:
        if made.table == "methods":
            rows = rows_of(tested.table, made.arm, made.angle_deg)
            answers[made.variant.name] = rows.query(harmful)
    parts = [pd.DataFrame(columns=[*_JUDGED])]
    for text in config.judges:
        judge = read_judge(text)
        for name, rows in answers.items():
            verdicts = judge(rows["prompt"].tolist(), rows["response"].tolist())
            said = summary(verdicts, outcomes=outcomes_of(judge))
            parts.append(said.assign(judge=text, variant=name, **_agreement(text)))
    return pd.concat(parts[1:] or parts, ignore_index=True).reindex(columns=[*_JUDGED])


_AGREED = ("kappa", "kappa_low", "kappa_high", "kappa_n")
_JUDGED = ("judge", "variant", "outcome", "count", "n", "rate", "low", "high", *_AGREED)


def _agreement(judge: str) -> dict[str, float]:
    """κ with people, where it is known."""
    found = known(judge)
    values = (found.kappa, found.low, found.high, found.n) if found else (math.nan,) * len(_AGREED)
    return dict(zip(_AGREED, values, strict=True))


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
            means = _means(rows)
            found.append(
                means.assign(
                    table=made.table,
                    variant=made.variant.name,
                    draw=made.variant.draw,
                    operator=arm.operator,
                )
            )
    return pd.concat(found, ignore_index=True)


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    groups = rows.groupby(["prompt_class", "angle_deg"], sort=True)
    means = groups.agg({"refusal_score": "mean", "opening_mass": "mean", "prompt": "size"})
    return means.rename(columns={"prompt": "n"}).reset_index()


def null_draws(measured: Measured) -> pd.DataFrame:
    """A row per random draw and angle: mean scores of the harmful test prompts it is measured on.

    The method's angle is the first of each draw.
    """
    found = []
    for name, swept in measured.nulls.items():
        for draw, (_, rows) in enumerate(swept.table.groupby(["selection", "plane"], sort=False)):
            means = rows.groupby("angle_deg", sort=False).agg(
                {"refusal_score": "mean", "opening_mass": "mean"}
            )
            found.append(means.reset_index().assign(null=name, draw=draw))
    table = pd.concat(found, ignore_index=True)
    return table.filter(["null", "draw", "angle_deg", "refusal_score", "opening_mass"])


def null_ranks(measured: Measured, full: Chosen) -> pd.DataFrame:
    """Where the method stands among the draws: p = (1 + draws that lower as much) / (1 + draws).

    ``p_value_whole`` counts the draws only that leave the text whole, with an opening mass of at
    least :data:`ss_lens.experiments.dial.verdict.BROKEN` of the unsteered one; where the method's
    own is less, it counts them all. The method is averaged over the prompts of the draws.
    """
    drawn = {place for swept in measured.nulls.values() for place in swept.table["prompt_index"]}
    harmful = "prompt_class == 'positive' and prompt_index in @drawn"
    method = rows_of(measured.tested.table, full.arm, full.angle_deg).query(harmful)
    score = float(method["refusal_score"].mean())
    unsteered = measured.tested.unsteered.query(harmful)
    base, base_mass = (float(unsteered[name].mean()) for name in ("refusal_score", "opening_mass"))
    mass, rows = float(method["opening_mass"].mean()), []
    limit = BROKEN * base_mass
    at_angle = null_draws(measured).query("angle_deg == @full.angle_deg")
    for name, draws in at_angle.groupby("null", sort=False):
        low = draws.loc[draws["refusal_score"] <= score]
        as_low = len(low)
        whole = as_low if mass < limit else int((low["opening_mass"] >= limit).sum())
        rows.append(
            {
                "null": name,
                "angle_deg": full.angle_deg,
                "unsteered": base,
                "method": score,
                "n": len(drawn),
                "draws": len(draws),
                "draw_mean": draws["refusal_score"].mean(),
                "draw_low": draws["refusal_score"].min(),
                "draw_high": draws["refusal_score"].max(),
                "draws_as_low": as_low,
                "p_value": (1 + as_low) / (1 + len(draws)),
                "unsteered_mass": base_mass,
                "method_mass": mass,
                "draw_mass_low": draws["opening_mass"].min(),
                "draw_mass_high": draws["opening_mass"].max(),
                "draws_as_low_whole": whole,
                "p_value_whole": (1 + whole) / (1 + len(draws)),
            }
        )
    return pd.DataFrame(rows)


def selection(measured: Measured) -> pd.DataFrame:
    """A row per rule of selection, and one for the published template: sites and depth of the dial.

    The depth is the lowest mean refusal score of harmful dev prompts at any angle.
    """
    names = {rule_name(as_rule(rule)): rule for rule in SELECTIONS}
    rows = []
    groups = measured.others.groups.drop_duplicates(["dataset", "selection"])
    for group in groups.to_dict("records"):
        wrapped = str(group["dataset"]).endswith("data_wrapped.jsonl")
        name = names.get(group["selection"], CENTRED)
        row: dict[str, Any] = {
            "rule": "site, published template" if wrapped else name,
            "n_sites": group["n_sites"],
            "blocks": _blocks(group["steered_sites"]),
            "problem": "" if pd.isna(group["problem"]) else group["problem"],
        }
        if pd.isna(group["problem"]):
            here = "dataset == @group['dataset'] and selection == @group['selection']"
            means = _means(measured.others.table.query(here)).set_index("angle_deg")
            lowest = means["refusal_score"].idxmin()
            row |= {
                "angle_deg": lowest,
                "refusal_score": means.loc[lowest, "refusal_score"],
                "opening_mass": means.loc[lowest, "opening_mass"],
                "refusal_score_at_0": means["refusal_score"].get(0.0),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _blocks(steered_sites: str) -> str:
    """``3, 15–26``"""
    layers = sorted({Site.parse(text).layer for text in steered_sites.split(",") if text})
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


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


def rows_of(table: pd.DataFrame, arm: Arm, angle: float | None = None) -> pd.DataFrame:
    """The rows of one arm of a sweep, at one angle or all."""
    here = pd.Series(True, index=table.index)
    for name, value in asdict(arm).items():
        here &= table[name].isna() if value is None else table[name] == value
    if angle is not None:
        here &= table["angle_deg"] == angle
    return table.loc[here]
