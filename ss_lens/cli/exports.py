"""A steered model as files, and the judgement of such files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

import ss_lens
from ss_lens.cli import console, options
from ss_lens.cli.console import keeps
from ss_lens.core.errors import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ss_lens.geometry.operators import Operator, RotateBy

Kind = Literal["lora", "merged", "gguf-lora", "dial", "bank"]
_COLUMNS = {
    "operator": "operator",
    "dtype": "dtype",
    "n_prompts": "prompts",
    "n_positions": "tokens",
    "relative": "deviation",
    "tolerance": "allowed",
    "steered_relative": "steering",
    "kl_mean": "kl",
    "equal_answers": "same answers",
}
_SERVER_COLUMNS = {
    "operator": "operator",
    "n_prompts": "prompts",
    "n_positions": "tokens",
    "max_difference": "difference",
    "kl_mean": "kl",
    "same_top": "same likeliest",
    "equal_answers": "same answers",
}


@keeps("nothing is left of an export that was not finished.")
def export(
    source: Annotated[
        str, typer.Argument(help="A saved calibration; with --verify, the model.", metavar="SOURCE")
    ],
    out_dir: Annotated[Path | None, typer.Option("--out", help="A new or empty folder.")] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--as",
            help="A PEFT adapter, merged weights, a llama.cpp adapter, two adapters for every "
            "angle, or one adapter per angle.",
        ),
    ] = None,
    angle: Annotated[float | None, typer.Option(help="Degrees to rotate by.")] = None,
    angles: Annotated[str | None, typer.Option(help="Degrees of a bank, comma-separated.")] = None,
    operator: Annotated[
        str | None, typer.Option(help="In place of --angle: Ablate, RotateScale(angle_deg=…), …")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Default: the one that was calibrated, by its name.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of merged weights: auto, float32, bfloat16 or float16.")
    ] = "auto",
    gguf: Annotated[
        Literal["f16", "q8_0"] | None,
        typer.Option(help="Of merged weights, write a GGUF file too; the base must be one."),
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="An export to compare with the steered model again.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="With --verify, the address of a running llama.cpp server that has the export: "
            "it is compared in the place of the files."
        ),
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Write the steered model as files that run without hooks, and check that they are exact.

    ss-lens export CALIBRATION --angle 30 --as lora --out FOLDER

    ss-lens export --verify FOLDER MODEL
    """
    from ss_lens.exports.export import check_request
    from ss_lens.exports.verify import CALIBRATION, described

    if verify is not None:
        given = {"out": out_dir, "as": kind, "angle": angle, "angles": angles}
        options.refuse_beside("--verify", **given, operator=operator, model=model, gguf=gguf)
        described(verify)
        calibration = ss_lens.Calibration.load(verify / CALIBRATION)
        loaded = _loaded(source, calibration, device)
        if server is None:
            _print(ss_lens.verify_export(verify, loaded), as_json)
        else:
            rows = ss_lens.verify_server(verify, loaded, server).to_dict("records")
            _print_rows(f"{verify} on {server}", _SERVER_COLUMNS, rows, as_json)
        return
    if server is not None:
        raise UserError(
            f"--server {server} is given without --verify, expected an export that it has; write "
            "ss-lens export --verify FOLDER MODEL --server ADDRESS."
        )
    if kind is None or out_dir is None:
        missing = "--as" if kind is None else "--out"
        raise UserError(
            f"{missing} is missing, expected what to write and where to; write for instance "
            "ss-lens export runs/sentiment/calibration --angle 30 --as lora --out runs/lora."
        )
    asked = _operator(kind, angle, angles, operator)
    calibration = ss_lens.Calibration.load(source)
    check_request(calibration, asked, kind, out_dir, dtype, gguf)
    loaded = _loaded(model or calibration.spec.model.name, calibration, device)
    made = ss_lens.export(
        calibration, loaded, asked, kind=kind, out=out_dir, dtype=dtype, gguf=gguf
    )
    _print(made, as_json)


def _operator(
    kind: Kind, angle: float | None, angles: str | None, operator: str | None
) -> Operator | type[RotateBy]:
    """What the options mean for this kind of export."""
    from ss_lens.core.values import read_value
    from ss_lens.geometry.operators import Operator

    given = {"--angle": angle, "--angles": angles, "--operator": operator}
    takes = {"dial": (), "bank": ("--angles",)}.get(kind, ("--angle", "--operator"))
    named = [option for option, value in given.items() if value is not None]
    if len(named) != min(1, len(takes)) or not {*named} <= {*takes}:
        raise UserError(
            f"an export of kind {kind!r} got {' and '.join(named) or 'no angle'}, expected "
            f"{' or '.join(takes) or 'none: a dial holds every angle'}; "
            f"{'leave it out' if not takes else f'write for instance {_EXAMPLES[takes[0]]}'}."
        )
    if kind == "dial":
        return ss_lens.RotateBy
    if angles is not None:
        return ss_lens.RotateBy(options.angles(angles))
    if operator is not None:
        return cast("Operator", read_value(operator, Operator.kinds(), "operator"))
    return ss_lens.RotateBy(cast(float, angle))


_EXAMPLES = {"--angle": "--angle 30", "--angles": "--angles 0,30,60"}


def _loaded(name: str, calibration: ss_lens.Calibration, device: str) -> TransformerBridge:
    return ss_lens.load_model(name, device=device, dtype=calibration.spec.model.dtype)


def _print(made: ss_lens.Export, as_json: bool) -> None:
    rows: list[dict[str, Any]] = made.parity.to_dict("records")
    if as_json:
        facts = {"folder": str(made.folder), "kind": made.kind, "parity": rows}
        console.print_json(facts)
        return
    _print_rows(f"{made.kind} at {made.folder}", _COLUMNS, rows, as_json)


def _print_rows(
    title: str, columns: dict[str, str], rows: list[dict[str, Any]], as_json: bool
) -> None:
    if as_json:
        console.print_json({"parity": rows})
        return
    console.line(title)
    shown = [[_shown(row[name]) for name in columns] for row in rows]
    console.print_rows([*columns.values()], shown, as_json=False)


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if value >= 0.1 else f"{value:.1e}"
