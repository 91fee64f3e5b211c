"""``python -m analyses.token_projections``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

import ss_lens
from analyses import output
from analyses.token_projections.figures import figure
from analyses.token_projections.measures import ANSWER_TOKENS, measure
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    angle: Annotated[float, typer.Option(help="Degrees.")] = 180,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Like L12.ln1_out, may be repeated; default: the first and the last steered, "
            "and the direction's."
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Per class, that no calibration has seen.")] = 1,
    max_new_tokens: Annotated[
        int, typer.Option(help="Of the answers, whose tokens are written beside the figures.")
    ] = ANSWER_TOKENS,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    out: output.Out = Path("runs/token_projections"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Each token of prompt and answer in the plane, unsteered and steered, a figure per prompt."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    operator = ss_lens.RotateBy(angle)  # before a model is loaded
    sites = None if site is None else [ss_lens.Site.parse(name) for name in site]
    parts = output.split(dataset, seed)
    unseen = output.held_out(parts, prompts)
    loaded = ss_lens.load_model(model, dtype=dtype)
    calibration = ss_lens.calibrate(ss_lens.capture(loaded, parts.train))
    table = measure(loaded, calibration, operator, unseen, sites, max_new_tokens=max_new_tokens)
    for key, rows in table.groupby(["prompt_class", "prompt_index"], sort=False):
        label, index = cast("tuple[str, int]", key)
        name = f"token_projections_{label}_{index}"
        subtitle = f"{model}; {dataset}, {label} test prompt {index}; rotate_by {angle:g}°"
        make = partial(output.printed, "token_projections.printed", subtitle, rows)
        output.save(out, name, rows, figure(rows, subtitle), chosen, make)


if __name__ == "__main__":
    output.command(main)
