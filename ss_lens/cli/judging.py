"""Judges on the command line: how far they agree with people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ss_lens.cli import console, options
from ss_lens.cli.console import keeps

if TYPE_CHECKING:
    from ss_lens.judges.agreement.measure import Agreement


@keeps("verdicts of endpoints are kept; the same command resumes.")
def measure(
    labels: Annotated[
        Path,
        typer.Option(help="CSV with model, prompt, completion, human_label, as XSTest has it."),
    ],
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Like 'RubricJudge(model=\"qwen2.5-coder-1.5b\")'; may be repeated."),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Judge so many answers, of each model and label its share.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample and the intervals.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Agreement with people of the refusal classifier, both lists of phrases, and each --judge."""
    from ss_lens.judges.agreement.known import remember
    from ss_lens.judges.agreement.labels import read_labelled
    from ss_lens.judges.agreement.measure import RULES, measure as held

    labelled = read_labelled(labels)
    if sample is not None:
        labelled = labelled.sample(sample, seed)
    found = held(labelled, tuple(judge or ()), seed)
    kept = [*(judge or ())]
    place = remember(found, labelled, kept) if kept else None
    if as_json:
        tables = {name: getattr(found, name) for name in ("kappas", "confusion")}
        records = {name: json.loads(str(t.to_json(orient="records"))) for name, t in tables.items()}
        console.print_json({**records, "notes": list(found.notes), "judges": [*RULES, *kept]})
        return
    _print(found)
    if place is not None:
        console.line(f"kept in {place}; printed wherever these judges are used")


def _print(found: Agreement) -> None:
    table = found.kappas
    models = [*dict.fromkeys(table["model"])]
    rows = []
    groups: Any = table.groupby(["judge", "counted"], sort=False)
    for (name, counted), group in groups:
        cells = []
        for row in group.set_index("model").loc[models].to_dict("records"):
            bounds = f"[{row['low']:.2f}, {row['high']:.2f}]"
            cells.append(f"{row['kappa']:.2f} {bounds}\n(n = {row['n']})")
        rows.append([name, counted, *cells])
    console.line("Cohen's κ with people, and 95 % intervals over prompts")
    console.print_rows(["judge", "counted", *models], rows, as_json=False)
    heads = ["judge", "people say", "refused", "not refused", "unparsed"]
    console.line("")
    console.print_rows(heads, found.confusion.to_numpy().tolist(), as_json=False)
    for note in found.notes:
        console.line(f"\n{note}")
