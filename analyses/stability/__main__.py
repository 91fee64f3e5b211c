"""``python -m analyses.stability``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.stability.conclusions import findings
from analyses.stability.figures import plane_figure, site_figure
from analyses.stability.measures import measure
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    draws: Annotated[int, typer.Option(help="Of each kind and size.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the split and the draws.")] = 0,
    out: output.Out = Path("runs/stability"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """How a calibration changes with its prompts, with their number, and under shuffled labels."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    train = output.split(dataset, seed).train
    acts = ss_lens.capture(ss_lens.load_model(model, dtype=dtype), train)
    found = measure(acts, n_resamples=draws, seed=seed)
    subtitle = (
        f"{model}; {dataset}: {acts.spec.n_positive} + {acts.spec.n_negative} prompts, "
        f"{draws} draws of each kind"
    )
    make = partial(output.printed, "stability.printed_sites", subtitle, found.sites)
    output.save(
        out, "stability_sites", found.sites, site_figure(found.sites, subtitle), chosen, make
    )
    make = partial(output.printed, "stability.printed_planes", subtitle, found.draws)
    output.save(
        out, "stability_planes", found.draws, plane_figure(found.draws, subtitle), chosen, make
    )
    for finding in findings(*found):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
