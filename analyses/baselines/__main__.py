"""``python -m analyses.baselines``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import ss_lens
from analyses import output, style
from analyses.baselines.figures import brief, figure
from analyses.baselines.lora import Training
from analyses.baselines.measures import check_budget, measure
from analyses.baselines.subject import Subject
from analyses.baselines.ways import all_ways
from analyses.budget.choosing import Goal
from analyses.budget.families import check_step
from analyses.printed.tables import markdown
from ss_lens import UserError
from ss_lens.core.checks import check_at_least
from ss_lens.models.sources import DEFAULT_MODEL

REFUSAL = "refusal"


def main(
    model: output.Model = DEFAULT_MODEL,
    dataset: Annotated[
        str | None,
        typer.Option(help="Other prompts: embedded name or file.", show_default="the behaviour's"),
    ] = None,
    dev: Annotated[int, typer.Option(help="Prompts per class that settings are chosen on.")] = 8,
    test: Annotated[int, typer.Option(help="Prompts per class that are reported.")] = 24,
    behaviour: Annotated[
        str, typer.Option(help="refusal, sentiment, formality, language, or a .yaml file.")
    ] = REFUSAL,
    goal: Annotated[Goal, typer.Option(help="Whether it shall become less or more.")] = "weaken",
    system: Annotated[
        list[str] | None,
        typer.Option(help="A system prompt that dev may choose; may be repeated."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Nats per token for what has a dial; without it each has its best."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the training and the tests.")] = 0,
    steps: Annotated[int, typer.Option(help="Of the adapter's training.")] = Training.steps,
    step: Annotated[int, typer.Option(help="Degrees between the angles of the scan.")] = 15,
    max_new_tokens: Annotated[int, typer.Option(help="Where answers are cut off.")] = 32,
    out: output.Out = Path("runs/baselines"),
    formats: output.Formats = None,
    dtype: output.Dtype = "auto",
) -> None:
    """Asking, showing, training, adding, ablating, rotating: one table, at measured KL and cost."""
    chosen = output.checked(formats)
    check_budget(budget)  # before a model is loaded
    check_at_least("--steps", steps)
    check_at_least("--max-new-tokens", max_new_tokens)
    check_step(step)
    subject = Subject(_behaviour(behaviour, dataset, model), goal)
    parts = subject.behaviour.dataset.split(dev=16, test=test, seed=seed)
    if not 1 <= dev <= len(parts.dev.positive):
        raise UserError(
            f"--dev must be 1 to {len(parts.dev.positive)} prompts per class; got {dev}."
        )
    loaded = ss_lens.load_model(model, dtype=dtype)
    acts = ss_lens.capture(loaded, parts.train)
    made = all_ways(
        loaded,
        parts.train,
        acts,
        subject,
        systems=system or (),
        training=Training(steps=steps, seed=seed),
        step=step,
    )
    table = measure(
        loaded,
        made,
        parts.dev.head(dev),
        parts.test,
        subject,
        budget=budget,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    subtitle = (
        f"{model}; {subject.behaviour.dataset.name}: settings chosen on {dev} + {dev} prompts, "
        f"reported on {test} + {test} others"
    )
    output.save(out, "baselines", table, figure(table, subtitle, subject.measures), chosen)
    rows = brief(table, subject.measures, subject.label)
    print(markdown([*rows.columns], rows.itertuples(index=False)))
    print(
        f"*: differs from rotating (p < {style.LEVEL:g}, Holm); †: no setting kept nine tenths of "
        "the dev answers from collapsing"
    )
    for row in table.drop_duplicates("variant").to_dict("records"):
        if row["note"]:
            print(f"- {row['variant']}: {row['note']}")


def _behaviour(name: str, dataset: str | None, model: str) -> ss_lens.Behaviour:
    """The behaviour, on other prompts where they are named; refusal on the model's dataset."""
    found = ss_lens.load_behaviour(name)
    if name == REFUSAL:
        dataset = output.dataset_name(dataset, model)
    return found if dataset is None else found.with_dataset(ss_lens.load_dataset(dataset))


if __name__ == "__main__":
    output.command(main)
