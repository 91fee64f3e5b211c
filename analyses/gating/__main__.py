"""``python -m analyses.gating``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.gating.conclusions import findings
from analyses.gating.figures import figure
from analyses.gating.measures import measure
from analyses.prompt_sources import read_sources
from ss_lens.models.sources import DEFAULT_MODEL
from ss_lens.steering.gates import check_rate


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    angle: Annotated[float, typer.Option(help="Degrees.")] = 180,
    rate: Annotated[float, typer.Option(help="False-positive rate on the negative class.")] = 0.1,
    prompts: Annotated[int, typer.Option(help="Per class, held out; and of each source.")] = 16,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE or NAME=FILE:COLUMN=VALUE; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the bootstrap.")] = 0,
    out: output.Out = Path("runs/gating"),
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Steering with and without a gate, on held-out prompts and on further sources."""
    chosen = output.checked(formats)
    dataset = output.dataset_name(dataset, model)
    operator = ss_lens.RotateBy(angle)  # before a model is loaded
    parts = output.split(dataset, seed)
    check_rate(rate, len(parts.dev.negative))
    unseen = output.held_out(parts, prompts)
    sources = {"positive": unseen.positive, "negative": unseen.negative}
    sources |= read_sources(source or (), most=prompts)
    loaded = ss_lens.load_model(model, dtype=dtype)
    calibration = ss_lens.calibrate(ss_lens.capture(loaded, parts.train))
    dev = ss_lens.capture(loaded, parts.dev)
    gate = ss_lens.Gate.from_dev(calibration, dev, false_positive_rate=rate)
    table = measure(loaded, calibration, operator, gate, sources, seed=seed)
    subtitle = f"{model}; {dataset}; rotate_by {operator.angle_deg:g}°; {gate!r}"
    output.save(out, "gating", table, figure(table, subtitle), chosen)
    for finding in findings(table):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
