"""The contents of the report of the paper's tables on one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from analyses.null_bands import bands, draws_of_paper
from analyses.paper.page import SHOWN, read_tables
from analyses.paper.verdicts import Outcome, Verdict, verdicts
from analyses.printed.tables import negative
from analyses.report.contents import (
    DIAL_MEASURES,
    Command,
    Contents,
    Said,
    Series,
    Table,
)
from analyses.report.sources import notes, variants
from analyses.report.sources.sites import with_sites
from ss_lens import Calibration, Store
from ss_lens.core.files import read_json
from ss_lens.experiments.paper.plan import FULL

_TITLES = {
    "null_ranks": "Random planes and random sets of sites",
    "selection": "Rules of selection, and the published template",
    "judges": "Judges",
    "capability": "Capability",
    "choices": "Choice of the angles and strengths",
}
_CAPTIONS = {
    "null_ranks": "One pass over harmful test prompts at the method's angle.",
    "selection": "The lowest mean refusal score of harmful dev prompts at any angle.",
    "judges": "Verdicts of other models on the test answers.",
    "capability": "Accuracy, and the share of the unsteered model's that is kept.",
    "choices": "On dev, among those at which few answers collapse.",
}


def of_paper(folder: Path, store: Store | None = None) -> Contents:
    """The report of a finished ``ss-lens paper``; answers stay in its cells.

    Raises:
        UserError: a table is missing, or the list of activations is damaged.
    """
    tables = read_tables(folder / "tables")
    again = "run `ss-lens paper` again, which makes it from what it keeps"
    told = read_json(folder / "paper.json", "list of activations (paper.json)", remedy=again)
    facts = dict(zip(tables["facts"]["fact"], map(str, tables["facts"]["value"]), strict=True))
    found, drawn = verdicts(tables), curves(tables)
    series = tuple(
        Series(name, variants.role(name, drawn, FULL), "positive")
        for name in dict.fromkeys(drawn["series"])
    )
    shown = {name: tables[name] for name in _TITLES if len(tables[name])}
    model = Path(facts["model"]).name
    command = f"ss-lens paper --model {facts['model']} --positive FILE --negative FILE"
    contents = Contents(
        title=f"{model} · the paper’s tables",
        subtitle="The tables of the paper on this model, with the controls that it lacks; curves "
        "are of harmful dev prompts, the random draws of harmful test prompts",
        verdict=(_said(found),),
        series=series,
        curves=drawn,
        measures=DIAL_MEASURES,
        start_deg=_start(tables["choices"]),
        tables=(
            _claims(found),
            *(
                variants.levels(tables[kind], kind.capitalize(), SHOWN, FULL)
                for kind in ("methods", "ablations")
            ),
            *(_plain(name, table) for name, table in shown.items()),
        ),
        configuration={name: _fact(name, value) for name, value in facts.items()},
        provenance={
            "ss_lens": f"{facts.get('ss_lens', 'unknown')} (run), {version('ss_lens')} (report)",
            **{f"activations, {part}": key for part, key in told["activations"].items()},
        },
        commands=(
            Command("the tables, resumed where they stopped", f"{command} --out {folder}"),
            Command("this report", f"ss-lens report {folder}"),
            Command("its figures and its page", f"python -m analyses.paper {folder}"),
        ),
    )
    calibration = Calibration.load(folder / "calibration")
    contents, missing = with_sites(contents, calibration, told["activations"], store)
    mixed = notes.about_versions(
        {"the tables": facts.get("ss_lens", version("ss_lens"))}, version("ss_lens")
    )
    return replace(contents, notes=(*mixed, *missing))


def curves(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The variants that have an angle, and the random draws at the angles they were measured at.

    Several draws have a range, 2.5 % to 97.5 % of them.
    """
    scan = tables["curves"].astype({"angle_deg": float})
    scan = scan.drop_duplicates(["variant", "draw", "angle_deg"])  # the method is in both tables
    parts = variants.curves(scan, FULL)
    ranks = tables["null_ranks"].set_index("null")
    for null, band in bands(draws_of_paper(tables)).groupby("null", sort=False):
        unsteered = {
            "refusal_score_unsteered": ranks.loc[null, "unsteered"],
            "opening_mass_unsteered": ranks.loc[null].get("unsteered_mass", np.nan),
        }
        parts.append(band.drop(columns="null").assign(series=null, n=np.nan, **unsteered))
    return pd.concat(parts, ignore_index=True)


def _start(choices: pd.DataFrame) -> float:
    own = choices.loc[choices["variant"] == FULL, "angle_deg"]
    return float(own.iloc[0]) if len(own) else 0.0


def _said(found: tuple[Verdict, ...]) -> Said:
    counts = Counter(verdict.outcome for verdict in found)
    words = ", ".join(f"{counts[name]} {name}" for name in get_args(Outcome) if counts[name])
    return Said(
        f"Of {len(found)} claims: {words}",
        "Each claim is judged by a rule with stated thresholds, below.",
    )


def _fact(name: str, value: str) -> str:
    return variants.number(float(value)) if name.startswith(("cos_", "norm_change_")) else value


def _claims(found: tuple[Verdict, ...]) -> Table:
    rows = [
        {"claim": v.claim, "verdict": v.outcome, "by": negative(v.evidence), "rule": v.rule}
        for v in found
    ]
    return Table("Claim by claim", "", pd.DataFrame(rows))


def _plain(name: str, table: pd.DataFrame) -> Table:
    texts = pd.DataFrame(
        {
            head.replace("_", " "): [variants.number(value) for value in table[head]]
            for head in table
        }
    )
    return Table(_TITLES[name], _CAPTIONS[name], texts)
