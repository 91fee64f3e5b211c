"""``python -m analyses.logit_lens``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.logit_lens.figures import figure, token_figure
from analyses.logit_lens.measures import ANGLES, measure
from ss_lens.generation.angle_batch import checked_angles
from ss_lens.geometry.operators import RotateBy
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    angle: Annotated[
        list[float] | None,
        typer.Option(help="Degrees, default 90 and 180; may be repeated."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Per class, that no calibration has seen.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the split and the bootstrap.")] = 0,
    out: output.Out = Path("runs/logit_lens"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Log-odds of refusing openings and the likeliest tokens by layer, unsteered and steered."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    angles = checked_angles(RotateBy, angle or ANGLES)  # before a model is loaded
    parts = output.split(dataset, seed)
    unseen = output.held_out(parts, prompts)
    loaded = ss_lens.load_model(model, dtype=dtype)
    calibration = ss_lens.calibrate(ss_lens.capture(loaded, parts.train))
    table = measure(loaded, calibration, unseen, angles, seed=seed)
    subtitle = (
        f"{model}; {dataset}: {prompts} + {prompts} prompts that the calibration has not seen"
    )
    make = partial(output.printed, "logit_lens.printed", subtitle, table)
    output.save(out, "logit_lens", table, figure(table, subtitle), chosen, make)
    make = partial(output.printed, "logit_lens.printed_tokens", subtitle, table)
    output.save(out, "logit_lens_tokens", table, token_figure(table, subtitle), chosen, make)


if __name__ == "__main__":
    output.command(main)
