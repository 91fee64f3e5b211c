"""``python -m analyses.budget``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output
from analyses.budget.choosing import Goal
from analyses.budget.families import check_step, paper_families
from analyses.budget.figures import figure
from analyses.budget.measures import BUDGET, check_budgets, measure
from ss_lens import UserError
from ss_lens.models.sources import DEFAULT_MODEL


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: output.Dataset = None,
    dev: Annotated[int, typer.Option(help="Prompts per class that strengths are chosen on.")] = 8,
    test: Annotated[int, typer.Option(help="Prompts per class that are reported.")] = 24,
    budget: Annotated[
        list[float] | None,
        typer.Option(help=f"Nats per token, default {BUDGET}; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split, bootstrap and permutations.")] = 0,
    goal: Annotated[
        Goal, typer.Option(help="Which of several strengths that spend the budget dev takes.")
    ] = "weaken",
    step: Annotated[int, typer.Option(help="Degrees between the angles of the scan.")] = 15,
    out: output.Out = Path("runs/budget"),
    paper: output.Paper = False,
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Refusal score of each operator at the same KL divergence from the unsteered model."""
    chosen = output.checked(formats, paper)
    dataset = output.dataset_name(dataset, model)
    budgets = budget or [BUDGET]
    check_budgets(budgets)  # before a model is loaded
    check_step(step)
    parts = output.split(dataset, seed, test)
    if not 1 <= dev <= len(parts.dev.positive):
        raise UserError(
            f"--dev must be 1 to {len(parts.dev.positive)} prompts per class; got {dev}."
        )
    loaded = ss_lens.load_model(model, dtype=dtype)
    families = paper_families(ss_lens.capture(loaded, parts.train), step)
    table = measure(
        loaded, families, parts.dev.head(dev), parts.test, budgets, goal=goal, seed=seed
    )
    subtitle = (
        f"{model}; {dataset}: strengths chosen on {dev} + {dev} prompts, reported on {test} + "
        f"{test} others"
    )
    make = partial(output.printed, "budget.printed", subtitle, table)
    output.save(out, "budget", table, figure(table, subtitle), chosen, make)
    for row in table.drop_duplicates(["budget", "family"]).to_dict("records"):
        if row["problem"]:
            print(f"- {row['family']}, {row['budget']:g} nats: {row['problem']}")
        elif row["candidates"]:
            print(
                f"- {row['family']}, {row['budget']:g} nats: sense {row['sense']}, from the "
                f"crossings (with dev scores) {row['candidates']}"
            )


if __name__ == "__main__":
    output.command(main)
