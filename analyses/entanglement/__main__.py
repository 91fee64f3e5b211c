"""``python -m analyses.entanglement``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.entanglement.conclusions import findings
from analyses.entanglement.figures import angle_figure, figure, front_figure
from analyses.entanglement.front import front
from analyses.entanglement.matrix import matrix
from analyses.entanglement.measures import Asked, measure
from analyses.prompt_sources import read_sources, spread
from analyses.random_planes import matched_planes
from analyses.steerability.questions import read_sets
from ss_lens.core.checks import check_one_of, check_whole
from ss_lens.datasets.readers import read_lines
from ss_lens.models.sources import DEFAULT_MODEL

LOOK_ALIKES = Path(__file__).with_name("look_alikes.txt")
"""Safe requests that share words with unsafe ones, written for this report."""


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Requests: NAME=FILE or NAME=FILE:COLUMN=VALUE; may be repeated."),
    ] = None,
    behaviour: Annotated[
        list[Path] | None, typer.Option(help="Multiple-choice .jsonl; may be repeated.")
    ] = None,
    goal: Annotated[str, typer.Option(help="lower or raise the score of the positive class.")] = (
        "lower"
    ),
    step: Annotated[float, typer.Option(help="Degrees between angles.")] = 45,
    prompts: Annotated[int, typer.Option(help="Held out per class, and of each source.")] = 16,
    capability: Annotated[int, typer.Option(help="Capability items; 0 for none.")] = 40,
    nulls: Annotated[int, typer.Option(help="Random planes of equal energy.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the split, bootstrap and planes.")] = 0,
    out: output.Out = Path("runs/entanglement"),
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """What else moves at each angle: requests of several sources, capability, coherence, KL."""
    chosen = output.checked(formats)
    dataset = output.dataset_name(dataset, model)
    angles = output.around(step)
    check_one_of("--goal", goal, ("lower", "raise"))
    check_whole("--capability", capability, at_least=0)
    check_whole("--nulls", nulls, at_least=0)
    parts = output.split(dataset, seed)
    unseen = output.held_out(parts, prompts)
    asked = Asked(
        sources={
            "positive": unseen.positive,
            "negative": unseen.negative,
            "safe look-alikes": tuple(spread(read_lines(LOOK_ALIKES), prompts)),
            **read_sources(source or (), most=prompts),
        },
        free="negative",
        questions={n: [*spread(some, prompts)] for n, some in read_sets(behaviour or ()).items()},
        capability_items=capability,
    )
    loaded = ss_lens.load_model(model, dtype=dtype)
    train = ss_lens.capture(loaded, parts.train)
    calibration = ss_lens.calibrate(train)
    random = matched_planes(train, calibration, nulls, seed)
    items = measure(loaded, calibration, ss_lens.RotateBy, asked, angles, nulls=random)
    table, points = matrix(items, seed=seed), front(items, "positive", goal, seed=seed)
    subtitle = (
        f"{model}; {dataset}: {prompts} prompts per source; rotate_by; effect: {goal} refusal"
    )
    output.save(out, "entanglement", table, figure(table, subtitle), chosen)
    output.save(out, "entanglement_angles", table, angle_figure(table, subtitle), chosen)
    output.save(out, "entanglement_front", points, front_figure(points, subtitle), chosen)
    for finding in findings(table, points):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
