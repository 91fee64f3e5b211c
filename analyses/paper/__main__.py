"""``python -m analyses.paper DIR`` draws a paper run, and writes its page of results."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from analyses import ablations, output, style
from analyses.ablations import turned
from analyses.null_bands import bands, draws_of_paper
from analyses.paper.page import SHOWN, read_tables, write_page
from analyses.run_figures import cosine_heatmap, norm_growth, sign_agreement
from analyses.run_parts import RunParts
from ss_lens import Calibration, Store, UserError
from ss_lens.core.files import read_json
from ss_lens.experiments.ablations.variants import FULL as REFERENCE, METRICS
from ss_lens.experiments.paper.plan import FULL

PRINTED = (
    *("refused", "answered", "refusal_score", "opening_mass"),
    *("collapsed", "perplexity", "compression_ratio", "repetition"),
)
"""The metrics of the forest plots in print, two rows of four."""


def parts_of(folder: Path, store: Store) -> RunParts:
    """The method's calibration, and the activations that a paper run names.

    Raises:
        UserError: the run is not finished or damaged, or the store lacks its activations.
    """
    path = folder / "paper.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished paper run; run `ss-lens paper` again.")
    again = "run `ss-lens paper` again, which makes it from what it keeps"
    keys = read_json(path, "list of activations (paper.json)", remedy=again)["activations"]
    train, test = (store.load(keys[part]) for part in ("train", "test"))
    return RunParts(Calibration.load(folder / "calibration"), train, test, pd.DataFrame())


def main(
    folder: Annotated[Path, typer.Argument(help="What `ss-lens paper` saved.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default FOLDER/figures.")] = None,
    paper: output.Paper = False,
    formats: output.Formats = None,
    docs: Annotated[
        Path | None, typer.Option(help="Also write NAME.md and NAME/ with tables and SVG there.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the page; default the model's.")] = None,
) -> None:
    """Draw sign agreement, norm growth, cosines, ablations and angle curves; write the page."""
    chosen, place = output.checked(formats, paper), out or folder / "figures"
    tables = read_tables(folder / "tables")
    parts = parts_of(folder, Store())
    for module in (cosine_heatmap, norm_growth, sign_agreement):
        table, figure = module.draw(parts)
        name_ = module.__name__.rpartition(".")[2]
        make = partial(output.printed, name_, style.subtitle_of(figure), table)
        output.save(place, name_, table, figure, chosen, make)
    drawn = bands(draws_of_paper(tables))
    for kind in ("methods", "ablations"):
        rows = _as_ablation(tables[kind])
        title = f"{parts.seen}; {kind}"
        for label in dict.fromkeys(rows["prompt_class"]):
            of_class = rows.query("prompt_class == @label")
            metrics = [metric for metric in METRICS if (of_class["metric"] == metric).any()]
            figure = ablations.forest(of_class, title, prompt_class=label, metrics=metrics)
            shown = {metric: head for metric, head in SHOWN.items() if metric in PRINTED}
            of_print = f"{title}, {label} prompts", of_class, shown, REFERENCE
            make = partial(output.printed, "forest", *of_print)
            output.save(place, f"{kind}_{label}", of_class, figure, chosen, make)
        scan = tables["curves"].query("table == @kind")
        scan = scan.astype({"angle_deg": float}).replace({"variant": {FULL: REFERENCE}})
        scan = turned(scan)
        make = partial(output.printed, "angle_curves", title, scan, REFERENCE, drawn)
        figure = ablations.polar(scan, title, bands=drawn)
        output.save(place, f"{kind}_angles", scan, figure, chosen, make)
    if docs is not None:
        facts = dict(zip(tables["facts"]["fact"], tables["facts"]["value"], strict=True))
        svgs = {path.name: path.read_text("utf-8") for path in sorted(place.glob("*.svg"))}
        print(write_page(folder / "tables", docs, name or Path(facts["model"]).name, svgs))


def _as_ablation(table: pd.DataFrame) -> pd.DataFrame:
    """The table as :func:`analyses.ablations.forest` takes it."""
    named = table.assign(
        variant=table["variant"].replace(FULL, REFERENCE),
        settled=table["p_holm"] < ablations.LEVEL,
    )
    return named.rename(columns={"angle_deg": "angles_deg"})


if __name__ == "__main__":
    output.command(main)
