"""The contents of the report of a sweep: each arm a curve, the seeds of one arm its draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.report.contents import (
    PLAIN_CLASSES,
    REFUSAL_CLASSES,
    UNSTEERED,
    Command,
    Contents,
    Measure,
    Series,
    Table,
)
from analyses.report.sources import notes
from analyses.report.sources.sweep_curves import curves
from ss_lens.core.files import read_json
from ss_lens.datasets.contrastive import EMBEDDED
from ss_lens.experiments.dial.answers import first_words
from ss_lens.experiments.grid import ARM_COLUMNS
from ss_lens.experiments.summaries import judges
from ss_lens.experiments.sweeps.result import SweepResult, load_sweep
from ss_lens.scoring.registry import Column, all_columns, columns_of, headings

_LEADING = (
    *("refusal_score", "behaviour_score", "shown", "refused", "opening_mass", "behaviour_mass"),
)
_LEVELS = {"refusal_score": 0.0, "behaviour_score": 0.0, "opening_mass": 0.5, "behaviour_mass": 0.5}
_RATES = ("opening_mass", "behaviour_mass", "repetition", "non_latin_share")
_NAMED = tuple(name for name in ARM_COLUMNS if name != "seed")
LONGEST_NAME = 56


def of_sweep(folder: Path, *, keep_answers: bool = False) -> Contents:
    """The report of a sweep's folder.

    Args:
        folder: of a sweep that is finished.
        keep_answers: whether answers to positive prompts are shown in full, not their first words.

    Raises:
        UserError: no sweep, none that is finished, or damaged.
    """
    written = read_json(folder / "sweep.json", "sweep (sweep.json)").get("ss_lens", "unknown")
    result = load_sweep(folder)
    table, unsteered = _named(result.table), result.unsteered
    part = _widest_part(table)
    measures, classes = _measures(_measured(result, part)), _classes(table)
    series, drawn = curves(table.loc[table["part"] == part], unsteered, measures, classes)
    texts = samples(table, unsteered, keep_answers=keep_answers)
    told = [
        *notes.about_versions({"the sweep": str(written)}, version("ss_lens")),
        *_about_values(result),
        *notes.about_refusals(table),
        *notes.about_prompts(texts, classes),
        *_problems(result.groups),
    ]
    wanted = {**headings(), "opening_mass": "opening mass"}
    still = [arm for arm in dict.fromkeys(table["arm"]) if arm.startswith("RotateBy")]
    n_arms, n_angles = len({s.name for s in series}), table["angle_deg"].nunique()
    return Contents(
        title=" · ".join(_titles(table)),
        subtitle=f"A sweep: {n_arms} curves, {n_angles} angles, {len(table):,} answers; curves are "
        f"of the {part} part",
        classes=classes,
        notes=tuple(told),
        series=series,
        curves=drawn,
        measures=measures,
        samples=texts,
        scores={name: heading for name, heading in wanted.items() if name in texts},
        still=tuple(still),
        start_deg=_start(result, drawn, series, measures),
        steered=_steered(result.groups),
        tables=_choice_tables(result),
        configuration={**_configuration(result), "refused by": "not measured", **judges(result)},
        provenance={"ss_lens": f"{written} (sweep), {version('ss_lens')} (report)"},
        commands=(
            Command("this report", f"ss-lens report {folder}"),
            Command("the sweep, from its YAML file", f"ss-lens sweep FILE.yaml --out {folder}"),
        ),
    )


def samples(
    table: pd.DataFrame, unsteered: pd.DataFrame, *, keep_answers: bool = False
) -> pd.DataFrame:
    """Steered and unsteered answers in one table; those to positive prompts cut unless kept."""
    plain = unsteered.assign(arm=UNSTEERED, angle_deg=np.nan)
    whole = pd.concat([table, plain.astype({"angle_deg": float})], ignore_index=True)
    whole = whole if "response" in whole else whole.assign(response="")
    full = whole["response"].fillna("").astype(str)
    cut = (whole["prompt_class"] == "positive") & (not keep_answers)
    kept = full.where(~cut, full.map(first_words))
    return whole.assign(response=kept, shortened=kept != full)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """With ``curve``, what the arm is apart from the seed, and ``arm``, the seed included.

    Only what differs between arms is named. The seed is also in the text of what is drawn with it.
    """
    arms = table.filter([*ARM_COLUMNS]).drop_duplicates()
    apart = arms.filter([*_NAMED]).astype(str)
    for name in ("selection", "plane"):
        pairs = zip(arms[name], arms["seed"], strict=True)
        apart[name] = [str(text).replace(f"seed={seed}", "seed") for text, seed in pairs]
    varying = [name for name in _NAMED if apart[name].nunique() > 1 and name != "operator"]
    texts = [" · ".join(row) for row in apart.filter(["operator", *varying]).to_numpy().tolist()]
    curves = {text: _short(text, place) for place, text in enumerate(dict.fromkeys(texts), start=1)}
    seeds = ["" if pd.isna(seed) else f", seed {seed}" for seed in arms["seed"]]
    named = arms.assign(curve=[curves[text] for text in texts])
    named = named.assign(arm=[a + b for a, b in zip(named["curve"], seeds, strict=True)])
    return table.merge(named, on=[*ARM_COLUMNS], how="left", validate="m:1")


def _short(text: str, place: int) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 6]}… ({place})"


def _measures(columns: dict[str, Column]) -> tuple[Measure, ...]:
    leading = [name for name in _LEADING if name in columns]
    others = [name for name in headings() if name in columns and name not in leading]
    return tuple(
        Measure(
            name,
            "refusal score (nats)" if name == "refusal_score" else columns[name].label or name,
            _LEVELS.get(name),
            columns[name].kind == "rate" or name in _RATES,
        )
        for name in (*leading, *others)
    )


def _widest_part(table: pd.DataFrame) -> str:
    """The part with the most points on its curves; test where both have as many."""
    points = table.filter(["part", "arm", "angle_deg"]).drop_duplicates()
    counts = {str(part): len(rows) for part, rows in points.groupby("part")}
    return max(counts, key=lambda part: (counts[part], part == "test"))


def _start(
    result: SweepResult, drawn: pd.DataFrame, series: Sequence[Series], measures: Sequence[Measure]
) -> float:
    """The angle that was chosen; else where the method is furthest from unsteered."""
    for made in result.choices:
        if made.choice.angle_deg is not None:
            return float(made.choice.angle_deg)
    leading = measures[0].column
    rows = drawn.loc[drawn["series"] == series[0].name].set_index("angle_deg")
    far = (rows[leading] - rows[f"{leading}_unsteered"]).abs()
    return float(far.idxmax()) if far.notna().any() else float(rows.index[0])


def _problems(groups: pd.DataFrame) -> list[str]:
    broken = groups.loc[groups["problem"].notna() & groups["problem"].ne("")]
    reasons = broken.drop_duplicates([*_NAMED, "seed"])["problem"]
    return [f"An arm could not be calibrated and is not drawn: {reason}" for reason in reasons]


def _steered(groups: pd.DataFrame) -> str:
    least, most = int(groups["n_sites"].min()), int(groups["n_sites"].max())
    sites = f"{least}" if least == most else f"{least} to {most}"
    return f"every token of prompt and answer; sites, by arm: {sites}"


def _measured(result: SweepResult, part: Any) -> dict[str, Column]:
    """The columns of the scores that a part was measured by; not all parts have all of them."""
    names = [c for score in result.config.scores_of(part) for c in columns_of(score)]
    known = all_columns()
    return {name: known[name] for name in names if name in result.table}


def _about_values(result: SweepResult) -> list[str]:
    told = []
    for part, rows in result.table.groupby("part", sort=False):
        measured = _measured(result, part)
        defined = [name for name, column in measured.items() if not column.undefined]
        told += notes.about_values(rows, defined, f"the {part} part")
    return told


def _classes(table: pd.DataFrame) -> Mapping[str, str]:
    """Harmful and harmless in the embedded sets of refusal; of other data only the user knows."""
    refusal = table["dataset"].isin([name for name in EMBEDDED if name.startswith("refusal")])
    return REFUSAL_CLASSES if refusal.all() else PLAIN_CLASSES


def _titles(table: pd.DataFrame) -> list[str]:
    return [
        notes.joined([Path(str(value)).name for value in table[name].unique()], 3)
        for name in ("model", "dataset")
    ]


def _choice_tables(result: SweepResult) -> tuple[Table, ...]:
    rows = [
        {
            **{name: str(getattr(made.arm, name)) for name in ("operator", "selection", "plane")},
            "seed": "" if made.arm.seed is None else str(made.arm.seed),
            "what dev chose, and what test says there": str(made.choice),
        }
        for made in result.choices
    ]
    if not rows:
        return ()
    caption = "On dev, among the angles at which few answers collapse; test is read there alone."
    return (Table("Choice of the angles", caption, pd.DataFrame(rows)),)


def _configuration(result: SweepResult) -> dict[str, str]:
    values = result.config.model_dump(mode="json")
    del values["grid"]
    axes = {name: result.table[name].dropna().unique() for name in (*ARM_COLUMNS, "angle_deg")}
    listed = {
        name: notes.joined([f"{v:g}" if isinstance(v, float) else str(v) for v in found], 12)
        for name, found in axes.items()
    }
    others = {name: str(value) for name, value in values.items() if value not in (None, {}, [])}
    return {**{name: text or "none" for name, text in listed.items()}, **others}
