"""The steps one at a time: capture, calibrate, steer, generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ss_lens
from ss_lens.cli import console, options, subjects
from ss_lens.cli.console import keeps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from ss_lens.models.chat import ChatFormat
    from ss_lens.models.sites import Stream

Prompt = Annotated[str, typer.Argument(help="What the user asks.")]


@keeps("captured activations are kept in the store, the same command resumes.")
def capture(
    model: options.Model = options.DEFAULT_MODEL,
    dataset: options.Dataset = None,
    behaviour: subjects.Behaviour = None,
    positive: subjects.Positive = None,
    negative: subjects.Negative = None,
    class_values: subjects.ClassValues = None,
    streams: Annotated[str, typer.Option(help="Comma-separated.")] = "ln1_out,ln2_out,resid_post",
    position: Annotated[
        str, typer.Option(help="Negative token index, mean or prompt_mean.")
    ] = "-1",
    limit: options.Limit = None,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Capture activations into the store (served from there when present)."""
    chat = options.chat(system, date, template_arguments)
    chosen, where = options.streams(streams), options.position(position)
    data = subjects.prompts(
        model, dataset, positive, negative, class_values, limit, named=behaviour
    )
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    acts = ss_lens.capture(loaded, data, streams=chosen, position=where, chat=chat)
    facts = {
        "key": acts.spec.key,
        "model": acts.spec.model.name,
        "dataset": acts.spec.dataset_name,
        "positive_prompts": acts.spec.n_positive,
        "negative_prompts": acts.spec.n_negative,
        "sites": len(acts.sites),
        "d_model": acts.spec.model.d_model,
    }
    console.print_facts(facts, as_json)


@keeps("captured activations are kept in the store, no calibration was saved.")
def calibrate(
    out_dir: Annotated[Path, typer.Option("--out", help="Where to save the calibration.")],
    model: options.Model = options.DEFAULT_MODEL,
    dataset: options.Dataset = None,
    behaviour: subjects.Behaviour = None,
    positive: subjects.Positive = None,
    negative: subjects.Negative = None,
    class_values: subjects.ClassValues = None,
    streams: Annotated[str, typer.Option(help="Streams to calibrate on.")] = "ln1_out,ln2_out",
    direction: subjects.Direction = None,
    choice: subjects.Choice = None,
    plane: subjects.Plane = None,
    rule: options.Rule = options.DEFAULT_RULE,
    limit: options.Limit = None,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Find direction, plane and discriminative sites, and save them."""
    from ss_lens.calibration.calibration import check_streams

    chat = options.chat(system, date, template_arguments)
    chosen, methods = options.streams(streams), subjects.methods(direction, choice, plane)
    options.rule(rule)
    check_streams(chosen)
    data = subjects.prompts(
        model, dataset, positive, negative, class_values, limit, named=behaviour
    )
    options.free_folder(out_dir)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    made = _calibrated(loaded, data, rule, chat, chosen, **methods)
    made.save(out_dir, overwrite=overwrite)
    console.print_facts({**console.summary(made), "saved": str(out_dir)}, as_json)


@keeps("captured activations are kept in the store, no answer was.")
def steer(
    prompt: Prompt,
    angle: Annotated[
        float | None, typer.Option(help="Degrees to rotate by.", callback=subjects.or_operator)
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(help="In place of --angle: RotateTo(angle_deg=0), Add(alpha=4), Ablate(), …"),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A saved calibration; else one is made from --dataset.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="What to calibrate on, without --calibration.",
            show_default=options.BY_MODEL,
        ),
    ] = None,
    behaviour: subjects.Behaviour = None,
    positive: subjects.Positive = None,
    negative: subjects.Negative = None,
    class_values: subjects.ClassValues = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="Sites to steer, without --calibration.", show_default=options.DEFAULT_RULE
        ),
    ] = None,
    positions: subjects.Where = None,
    temperature: subjects.Temperature = 0,
    seed: subjects.SamplingSeed = 0,
    max_new_tokens: options.NewTokens = 64,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Answer one prompt under Selective Steering, or another operator."""
    edit, where = subjects.operator(angle, operator), subjects.positions(positions)
    chat = options.chat(system, date, template_arguments)
    asked = options.question(prompt, max_new_tokens, temperature)
    source = _source(model, calibration, dataset, behaviour, positive, negative, class_values, rule)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    saved = _saved_or_made(loaded, source, rule, chat)
    with ss_lens.steer(loaded, saved, edit, positions=where):
        (text,) = ss_lens.generate(
            *(loaded, [asked]),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            chat=chat,
        )
    turned = {"angle_deg": angle} if operator is None else {"operator": repr(edit)}
    console.print_answer(text, {"prompt": prompt, **turned}, as_json)


@keeps("nothing is kept.")
def generate(
    prompt: Prompt,
    model: options.Model = options.DEFAULT_MODEL,
    temperature: subjects.Temperature = 0,
    seed: subjects.SamplingSeed = 0,
    max_new_tokens: options.NewTokens = 64,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Answer one prompt without steering."""
    chat = options.chat(system, date, template_arguments)
    asked = options.question(prompt, max_new_tokens, temperature)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    (text,) = ss_lens.generate(
        *(loaded, [asked]),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
    )
    console.print_answer(text, {"prompt": prompt}, as_json)


@keeps("captured activations are kept in the store, no answer was.")
def compare(
    prompt: Prompt,
    angles: Annotated[str, typer.Option(help="Degrees, comma-separated.")] = "0,90,180",
    operators: Annotated[
        str, typer.Option(help="rotate_by, rotate_to, add, ablate, … or a value: Add(alpha=4).")
    ] = "rotate_by,rotate_to,add",
    calibration: Annotated[
        Path | None, typer.Option(help="A saved calibration; else one is made from the prompts.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    dataset: options.Dataset = None,
    behaviour: subjects.Behaviour = None,
    positive: subjects.Positive = None,
    negative: subjects.Negative = None,
    class_values: subjects.ClassValues = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="Sites to steer, without --calibration.", show_default=options.DEFAULT_RULE
        ),
    ] = None,
    positions: subjects.Where = None,
    max_new_tokens: options.NewTokens = 64,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Answer one prompt unsteered and under each operator at each angle; the model loads once."""
    from ss_lens.generation.angle_batch import checked_angles
    from ss_lens.generation.comparison import check_operators, compare_operators, read_operators

    degrees, where = options.angles(angles), subjects.positions(positions)
    checked_angles(ss_lens.RotateBy, degrees)
    check_operators(operators)
    chat = options.chat(system, date, template_arguments)
    asked = options.question(prompt, max_new_tokens)
    source = _source(model, calibration, dataset, behaviour, positive, negative, class_values, rule)
    if isinstance(source, ss_lens.Calibration):
        read_operators(operators, source)  # before the model is loaded
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    saved = _saved_or_made(loaded, source, rule, chat)
    table = compare_operators(
        loaded,
        saved,
        read_operators(operators, saved),
        [asked],
        degrees,
        max_new_tokens=max_new_tokens,
        positions=where,
        chat=chat,
    )
    _print_side_by_side(table, as_json)


def _print_side_by_side(table: pd.DataFrame, as_json: bool) -> None:
    """A row per text, unsteered first."""
    if as_json:
        console.print_json(json.loads(str(table.to_json(orient="records"))))
        return
    rows = [
        [
            row["operator"],
            "" if row["angle_deg"] != row["angle_deg"] else f"{row['angle_deg']:g}°",
            row["response"],
        ]
        for row in table.to_dict("records")
    ]
    console.print_rows(["operator", "angle", "answer"], rows, as_json=False)


def _source(
    model: str,
    calibration: Path | None,
    dataset: str | None,
    behaviour: str | None,
    positive: str | None,
    negative: str | None,
    class_values: str | None,
    rule: str | None,
) -> ss_lens.Calibration | ss_lens.ContrastiveDataset:
    """The saved calibration, or the prompts to make one from; checked before a model is loaded."""
    if calibration is not None:
        given = {"dataset": dataset, "behaviour": behaviour, "rule": rule, "positive": positive}
        given |= {"negative": negative, "class_values": class_values}
        options.refuse_beside("--calibration", **given)
        return ss_lens.Calibration.load(calibration)
    options.rule(rule or options.DEFAULT_RULE)
    return subjects.prompts(model, dataset, positive, negative, class_values, named=behaviour)


def _saved_or_made(
    model: TransformerBridge,
    source: ss_lens.Calibration | ss_lens.ContrastiveDataset,
    rule: str | None,
    chat: ChatFormat,
) -> ss_lens.Calibration:
    """The calibration of what :func:`_source` gives."""
    if isinstance(source, ss_lens.Calibration):
        return source
    return _calibrated(model, source, rule or options.DEFAULT_RULE, chat)


def _calibrated(
    model: TransformerBridge,
    data: ss_lens.ContrastiveDataset,
    rule: str,
    chat: ChatFormat,
    streams: Sequence[Stream] = ("ln1_out", "ln2_out"),
    **methods: Any,
) -> ss_lens.Calibration:
    """The calibration on these prompts; activations come from the store where they are there."""
    from ss_lens.activations.capture import DEFAULT_STREAMS

    # The default streams are captured too, so that this and every other verb share one entry.
    wanted = tuple(dict.fromkeys((*DEFAULT_STREAMS, *streams)))
    acts = ss_lens.capture(model, data, streams=wanted, chat=chat)
    return ss_lens.calibrate(acts, streams=streams, rule=rule, **methods)
