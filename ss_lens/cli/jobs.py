"""The long jobs: the main run, a sweep, the ablation table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import ss_lens
from ss_lens.cli import console, options, run_tables, subjects, tables
from ss_lens.cli.console import keeps
from ss_lens.cli.reports import report_of_job

KeepAnswers = Annotated[
    bool,
    typer.Option(
        "--keep-answers",
        help="Keep in full what answers a harmful request, not its first six words.",
    ),
]
RESUMES = "finished work is kept, the same command resumes."


@keeps(RESUMES)
def run(
    model: options.Model = options.DEFAULT_MODEL,
    dataset: options.Dataset = None,
    behaviour: subjects.Behaviour = None,
    positive: subjects.Positive = None,
    negative: subjects.Negative = None,
    class_values: subjects.ClassValues = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Run directory.", show_default="runs/BEHAVIOUR"),
    ] = None,
    angles: Annotated[str, typer.Option(help="Degrees, comma-separated.")] = options.EIGHT_ANGLES,
    rule: options.Rule = options.DEFAULT_RULE,
    dev: options.DevPrompts = 16,
    test: options.TestPrompts = 24,
    seed: options.SplitSeed = 0,
    max_new_tokens: options.NewTokens = 48,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    draws: Annotated[int, typer.Option(help="Random planes of each kind to compare with.")] = 8,
    fallback: Annotated[
        str | None,
        typer.Option(help="Model to run where the other is too large or no source has it."),
    ] = None,
    keep_answers: KeepAnswers = False,
    as_json: options.Json = False,
) -> None:
    """The main job: the dial beside its controls, an angle from dev, answers to test, a verdict."""
    from ss_lens.core.errors import Unavailable, UserError
    from ss_lens.experiments.dial.folder import check_run_dir
    from ss_lens.models.sources import default_dataset

    config = ss_lens.RunConfig(
        options.angles(angles),
        options.rule(rule),
        dev,
        test,
        seed,
        max_new_tokens,
        options.chat(system, date, template_arguments),
        draws,
        keep_answers,
    )
    folder = subjects.out_folder(out_dir, behaviour)
    given = subjects.given_prompts(dataset, positive, negative, class_values)
    followed = subjects.behaviour(behaviour, given)
    subjects.note_behaviour(followed)
    by_model = given is None and followed is None
    if followed is None:
        asked = data = options.dataset(None, model) if given is None else given
    else:
        asked, data = followed, followed.dataset
    try:
        check_run_dir(folder, data, config, followed)
    except UserError:
        # It may hold the run of the fallback, on that model's dataset; run_main_job looks again.
        if not by_model or fallback is None:
            raise
        check_run_dir(folder, ss_lens.load_dataset(default_dataset(fallback)), config)
    try:
        loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    except Unavailable as unavailable:
        if fallback is None:
            raise
        console.note(f"{unavailable} Running {fallback} instead.")
        asked = options.dataset(None, fallback) if by_model else asked
        loaded = ss_lens.load_model(fallback, device=device, dtype=dtype)
    finished = ss_lens.run_main_job(loaded, asked, folder, config)
    run_tables.print_run(finished, folder, report_of_job(folder), as_json)


@keeps(RESUMES)
def sweep(
    config: Annotated[Path, typer.Argument(help="A YAML file, like configs/sweep_small.yaml.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder.")] = Path("runs/sweep"),
    behaviour: Annotated[
        str | None,
        typer.Option(help="In place of the file's: an embedded name, or a .yaml file."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure the grid of a YAML file; what the folder has already is not computed again."""
    swept = ss_lens.run_sweep(ss_lens.load_sweep_config(config, behaviour=behaviour), out_dir)
    tables.print_sweep(swept, out_dir, as_json)


@keeps(RESUMES)
def ablate(
    model: options.Model = options.DEFAULT_MODEL,
    dataset: options.Dataset = None,
    behaviour: subjects.Behaviour = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder.")] = Path("runs/ablations"),
    angles: Annotated[
        str, typer.Option(help="Degrees to choose from on dev.")
    ] = options.EIGHT_ANGLES,
    dev: options.DevPrompts = 16,
    test: options.TestPrompts = 24,
    seed: options.SplitSeed = 0,
    draws: Annotated[
        int, typer.Option(help="Draws of random sites; of other random controls half as many.")
    ] = 5,
    workers: Annotated[int, typer.Option(help="Processes that share the work.")] = 1,
    max_new_tokens: options.NewTokens = 32,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """The ablation table: the full method against variants that lack one part, tested in pairs."""
    followed = subjects.behaviour(behaviour)
    subjects.note_behaviour(followed)
    if followed is None:
        name = options.dataset_name(dataset, model)
        data = ss_lens.load_dataset(name)
    else:
        options.refuse_beside("--behaviour", dataset=dataset)
        data = followed.dataset
        name = data.name
    config = ss_lens.AblationConfig(
        model=model,
        dataset=name,
        angles_deg=options.angles(angles),
        dev=dev,
        test=test,
        seed=seed,
        draws=draws,
        workers=workers,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        chat=options.chat(system, date, template_arguments),
        behaviour=None if followed is None else behaviour,
    )
    data.split(dev=dev, test=test, seed=seed)
    tables.print_ablations(ss_lens.run_ablations(config, out_dir), out_dir, as_json)


@keeps(RESUMES)
def paper(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder.")],
    model: options.Model = options.DEFAULT_MODEL,
    dataset: Annotated[
        str | None,
        typer.Option(help="Both classes: embedded name or file.", show_default=options.BY_MODEL),
    ] = None,
    behaviour: subjects.Behaviour = None,
    positive: Annotated[
        str | None, typer.Option(help="Harmful prompts: a file; beside --negative.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="Harmless prompts: a file; beside --positive.")
    ] = None,
    size: Annotated[str, typer.Option(help="small or full.")] = "small",
    seed: options.SplitSeed = 0,
    workers: Annotated[int, typer.Option(help="Processes or jobs that share the work.")] = 1,
    cluster: Annotated[
        Literal["local", "slurm"] | None, typer.Option(help="local or slurm.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Like 'HarmBench(template=\"card\")'; may be repeated."),
    ] = None,
    keep_answers: KeepAnswers = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """The tables of the paper on one model, with the controls that it lacks."""
    from ss_lens.core.checks import check_one_of
    from ss_lens.experiments.paper.plan import SIZES, PaperConfig
    from ss_lens.experiments.paper.run import run_paper

    check_one_of("--size", size, tuple(SIZES))
    data = subjects.prompts(model, dataset, positive, negative, named=behaviour)
    followed = subjects.behaviour(behaviour)
    subjects.note_behaviour(followed)
    config = PaperConfig(
        *(model, SIZES[size], seed, device, dtype, workers, cluster, tuple(judge or ())),
        keep_answers=keep_answers,
        behaviour=None if followed is None else behaviour,
    )
    tables_dir = run_paper(config, data, out_dir)
    if followed is not None:
        console.line(f"tables in {tables_dir}; the paper's claims are of refusal and not judged")
        return
    console.line(f"tables in {tables_dir}; draw them with: python -m analyses.paper {out_dir}")
    if written := report_of_job(out_dir):
        console.line(f"report: {written}")
