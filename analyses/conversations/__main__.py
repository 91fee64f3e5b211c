"""``python -m analyses.conversations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.conversations.conclusions import findings
from analyses.conversations.figures import figure
from analyses.conversations.measures import ANSWER_TOKENS, measure, summarise
from ss_lens import UserError
from ss_lens.core.checks import check_whole
from ss_lens.datasets.readers import read_lines
from ss_lens.models.sources import DEFAULT_MODEL

SCRIPT = Path(__file__).with_name("script.txt")
"""Ten harmless turns of a user, each of which follows from the one before."""


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    angle: Annotated[float, typer.Option(help="Degrees.")] = 180,
    script: Annotated[Path, typer.Option(help="The user's turns, one a line.")] = SCRIPT,
    turns: Annotated[int, typer.Option(help="How many of them.")] = 10,
    probes: Annotated[int, typer.Option(help="Held-out positive prompts.")] = 8,
    tokens: Annotated[int, typer.Option(help="Per answer, at most.")] = ANSWER_TOKENS,
    seed: Annotated[int, typer.Option(help="Of the split and the bootstrap.")] = 0,
    out: output.Out = Path("runs/conversations"),
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Refusal score and norm over a conversation: steering off, always on, on the answer only."""
    chosen = output.checked(formats)
    dataset = output.dataset_name(dataset, model)
    operator = ss_lens.RotateBy(angle)  # before a model is loaded
    check_whole("--tokens", tokens, at_least=1)
    said = read_lines(script)
    if not 1 <= turns <= len(said):
        raise UserError(f"--turns must be 1 to {len(said)}, the lines of {script}; got {turns}.")
    parts = output.split(dataset, seed)
    unseen = output.held_out(parts, probes)
    loaded = ss_lens.load_model(model, dtype=dtype)
    calibration = ss_lens.calibrate(ss_lens.capture(loaded, parts.train))
    table = measure(
        *(loaded, calibration, operator, said[:turns], unseen.positive), max_new_tokens=tokens
    )
    summary = summarise(table, seed=seed)
    subtitle = f"{model}; {dataset}; rotate_by {operator.angle_deg:g}°; {probes} probes per turn"
    output.save(out, "conversations", summary, figure(summary, subtitle), chosen)
    for finding in findings(summary):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
