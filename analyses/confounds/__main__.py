"""``python -m analyses.confounds``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.confounds.conclusions import findings
from analyses.confounds.figures import figure
from analyses.confounds.measures import measure
from ss_lens.models.chat import tokenize
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    seed: Annotated[int, typer.Option(help="Of the split, the folds and the draws.")] = 0,
    out: output.Out = Path("runs/confounds"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Whether length and surface form tell the classes apart as well as the activations do."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    train = output.split(dataset, seed).train
    loaded = ss_lens.load_model(model, dtype=dtype)
    counts = [len(ids) for ids in tokenize(loaded, (*train.positive, *train.negative))]
    table = measure(train, ss_lens.capture(loaded, train), token_counts=counts, seed=seed)
    subtitle = f"{model}; {dataset}: {len(train.positive)} + {len(train.negative)} prompts"
    make = partial(output.printed, "confounds.printed", subtitle, table)
    output.save(out, "confounds", table, figure(table, subtitle), chosen, make)
    for finding in findings(table):
        print(f"- {finding}")


if __name__ == "__main__":
    output.command(main)
