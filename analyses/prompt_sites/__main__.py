"""``python -m analyses.prompt_sites``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.prompt_sites.conclusions import findings
from analyses.prompt_sites.figures import figure
from analyses.prompt_sites.measures import measure
from analyses.prompt_sources import read_sources
from ss_lens.calibration.site_selection import as_rule
from ss_lens.core.checks import check_whole
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    angle: Annotated[float, typer.Option(help="Degrees.")] = 180,
    k: Annotated[int, typer.Option("--k", help="Sites per prompt.")] = 8,
    rule: Annotated[str, typer.Option(help="Sites to choose from: site, block …")] = "site",
    prompts: Annotated[int, typer.Option(help="Per class, held out; and of each source.")] = 16,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE or NAME=FILE:COLUMN=VALUE; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the bootstrap.")] = 0,
    out: output.Out = Path("runs/prompt_sites"),
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Steering at sites that are chosen for each prompt, and at as many fixed ones."""
    chosen = output.checked(formats)
    dataset = output.dataset_name(dataset, model)
    operator = ss_lens.RotateBy(angle)  # before a model is loaded
    as_rule(rule)
    check_whole("--k", k, at_least=1)
    parts = output.split(dataset, seed)
    unseen = output.held_out(parts, prompts)
    sources = {"positive": unseen.positive, "negative": unseen.negative}
    sources |= read_sources(source or (), most=prompts)
    loaded = ss_lens.load_model(model, dtype=dtype)
    calibration = ss_lens.calibrate(ss_lens.capture(loaded, parts.train), rule=rule)
    dev = ss_lens.capture(loaded, parts.dev)
    sites = ss_lens.PromptSites.from_dev(calibration, dev, k=k)
    table = measure(loaded, calibration, operator, sites, sources, seed=seed)
    subtitle = f"{model}; {dataset}; rotate_by {operator.angle_deg:g}°; {sites!r}"
    output.save(out, "prompt_sites", table, figure(table, subtitle), chosen)
    for finding in findings(table):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
