"""``python -m analyses.site_effects``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.site_effects.conclusions import findings
from analyses.site_effects.figures import figure
from analyses.site_effects.measures import DRAWS, measure
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    angle: Annotated[float, typer.Option(help="Degrees.")] = 180,
    prompts: Annotated[int, typer.Option(help="Per class, that no calibration has seen.")] = 8,
    draws: Annotated[int, typer.Option(help="Random planes per site.")] = DRAWS,
    seed: Annotated[int, typer.Option(help="Of the split, bootstrap and planes.")] = 0,
    out: output.Out = Path("runs/site_effects"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Change of the refusal score by each site alone, and by leaving it out, at one angle."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    operator = ss_lens.RotateBy(angle)  # before a model is loaded
    parts = output.split(dataset, seed)
    unseen = output.held_out(parts, prompts)
    loaded = ss_lens.load_model(model, dtype=dtype)
    calibration = ss_lens.calibrate(ss_lens.capture(loaded, parts.train))
    table = measure(loaded, calibration, operator, unseen, draws=draws, seed=seed)
    subtitle = (
        f"{model}; {dataset}: {prompts} + {prompts} prompts that the calibration has not seen; "
        f"rotate_by {operator.angle_deg:g}°"
    )
    make = partial(output.printed, "site_effects.printed", subtitle, table)
    output.save(out, "site_effects", table, figure(table, subtitle), chosen, make)
    for finding in findings(table):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
