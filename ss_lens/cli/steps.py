"""The steps one at a time: capture, calibrate, steer, generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import ss_lens
from ss_lens.cli import console, options
from ss_lens.cli.console import keeps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformer_lens.model_bridge import TransformerBridge

    from ss_lens.models.chat import ChatFormat
    from ss_lens.models.sites import Stream

Prompt = Annotated[str, typer.Argument(help="What the user asks.")]


@keeps("captured activations are kept in the store, the same command resumes.")
def capture(
    model: options.Model = options.DEFAULT_MODEL,
    dataset: options.Dataset = None,
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
    data = options.dataset(dataset, model, limit)
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
    streams: Annotated[str, typer.Option(help="Streams to calibrate on.")] = "ln1_out,ln2_out",
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
    chosen = options.streams(streams)
    options.rule(rule)
    check_streams(chosen)
    data = options.dataset(dataset, model, limit)
    options.free_folder(out_dir)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    made = _calibrated(loaded, data, rule, chat, chosen)
    made.save(out_dir, overwrite=overwrite)
    console.print_facts({**console.summary(made), "saved": str(out_dir)}, as_json)


@keeps("captured activations are kept in the store, no answer was.")
def steer(
    prompt: Prompt,
    angle: Annotated[float, typer.Option(help="Degrees to rotate by.")],
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
    rule: Annotated[
        str | None,
        typer.Option(
            help="Sites to steer, without --calibration.", show_default=options.DEFAULT_RULE
        ),
    ] = None,
    max_new_tokens: options.NewTokens = 64,
    system: options.System = None,
    date: options.Date = None,
    template_arguments: options.TemplateArguments = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Answer one prompt under Selective Steering."""
    operator = ss_lens.RotateBy(angle)
    chat = options.chat(system, date, template_arguments)
    asked = options.question(prompt, max_new_tokens)
    saved = data = None
    if calibration is not None:
        options.refuse_beside("--calibration", dataset=dataset, rule=rule)
        saved = ss_lens.Calibration.load(calibration)
    else:
        options.rule(rule or options.DEFAULT_RULE)
        data = options.dataset(dataset, model)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    if data is not None:
        saved = _calibrated(loaded, data, rule or options.DEFAULT_RULE, chat)
    assert saved is not None
    with ss_lens.steer(loaded, saved, operator):
        text = ss_lens.generate(loaded, [asked], max_new_tokens=max_new_tokens, chat=chat)[0]
    console.print_answer(text, {"prompt": prompt, "angle_deg": angle}, as_json)


@keeps("nothing is kept.")
def generate(
    prompt: Prompt,
    model: options.Model = options.DEFAULT_MODEL,
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
    asked = options.question(prompt, max_new_tokens)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    text = ss_lens.generate(loaded, [asked], max_new_tokens=max_new_tokens, chat=chat)[0]
    console.print_answer(text, {"prompt": prompt}, as_json)


def _calibrated(
    model: TransformerBridge,
    data: ss_lens.ContrastiveDataset,
    rule: str,
    chat: ChatFormat,
    streams: Sequence[Stream] = ("ln1_out", "ln2_out"),
) -> ss_lens.Calibration:
    from ss_lens.activations.capture import DEFAULT_STREAMS

    # The default streams are captured too, so that this and every other verb share one entry.
    wanted = tuple(dict.fromkeys((*DEFAULT_STREAMS, *streams)))
    acts = ss_lens.capture(model, data, streams=wanted, chat=chat)
    return ss_lens.calibrate(acts, streams=streams, rule=rule)
