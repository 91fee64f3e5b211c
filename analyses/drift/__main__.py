"""``python -m analyses.drift``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses import output
from analyses.drift.conclusions import findings
from analyses.drift.figures import figure, geometry_figure
from analyses.drift.geometry import compare
from analyses.drift.measures import measure
from analyses.prompt_sources import read_sources
from analyses.random_planes import matched_planes
from ss_lens import Activations, ContrastiveDataset, UserError
from ss_lens.core.checks import check_whole
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    source: Annotated[
        list[str], typer.Option(help="Requests: NAME=FILE or NAME=FILE:COLUMN=VALUE; repeatable.")
    ],
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    train: Annotated[int, typer.Option(help="Requests per source to calibrate on.")] = 24,
    test: Annotated[int, typer.Option(help="Requests per source to measure on.")] = 16,
    step: Annotated[float, typer.Option(help="Degrees between angles.")] = 45,
    draws: Annotated[
        int, typer.Option(help="Random planes for a band; each costs as a calibration does.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the random planes.")] = 0,
    out: output.Out = Path("runs/drift"),
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Planes, sites and dials of calibrations on several sources of requests.

    DATASET is one source more, and its negative class is what all of them are contrasted with.
    """
    chosen = output.checked(formats)
    dataset = output.dataset_name(dataset, model)
    angles = output.around(step)
    check_whole("--train", train, at_least=2)  # which are halved
    check_whole("--test", test, at_least=1)
    if draws < 0 or draws == 1:
        raise UserError(f"--draws must be 0, or 2 and more for a band; got {draws}. Write 99.")
    data = ss_lens.load_dataset(dataset)
    sources = {dataset: data.positive, **read_sources(source, most=train + test)}
    for name, prompts in (*sources.items(), (f"{dataset}, negative", data.negative)):
        if len(prompts) < train + test:
            raise UserError(
                f"{name} has {len(prompts)} prompts; expected at least {train} to calibrate on and "
                f"{test} others to measure on. Ask for fewer with --train and --test."
            )
    loaded = ss_lens.load_model(model, dtype=dtype)
    negative = data.negative[:train]
    calibrations, halves, nulls = {}, {}, []
    for name, prompts in sources.items():
        acts = _captured(loaded, name, prompts[:train], negative)
        calibrations[name] = ss_lens.calibrate(acts)
        if name == dataset:
            nulls = matched_planes(acts, calibrations[name], draws, seed)
        halves[name] = [
            ss_lens.calibrate(
                _captured(loaded, f"{name}, half {i}", prompts[:train][i::2], negative[i::2])
            )
            for i in (0, 1)
        ]
    measured = {name: prompts[train : train + test] for name, prompts in sources.items()}
    geometry = compare(calibrations, halves, seed=seed)
    operator = ss_lens.RotateBy
    dial = measure(loaded, calibrations, operator, measured, angles, nulls=nulls, seed=seed)
    subtitle = f"{model}; {train} requests to calibrate on and {test} to measure on; rotate_by"
    output.save(out, "drift", dial, figure(dial, subtitle), chosen)
    output.save(out, "drift_geometry", geometry, geometry_figure(geometry, subtitle), chosen)
    for finding in findings(geometry, dial):
        print(f"- {finding}")


def _captured(
    model: TransformerBridge, name: str, positive: tuple[str, ...], negative: tuple[str, ...]
) -> Activations:
    data = ContrastiveDataset(name, tuple(positive), tuple(negative))
    return ss_lens.capture(model, data)


if __name__ == "__main__":
    output.command(main)
