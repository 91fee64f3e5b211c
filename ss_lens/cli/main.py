"""The command line: verbs that call the library and print what it returns."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ss_lens.cli import console, exports, jobs, judging, listings, reports, steps
from ss_lens.core.errors import UserError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
store_app = typer.Typer(no_args_is_help=True, help="List, remove and verify captured activations.")
for verb in (
    *(jobs.run, jobs.sweep, jobs.ablate, jobs.paper, reports.report),
    *(steps.capture, steps.calibrate, steps.steer, steps.generate, steps.compare),
    exports.export,
    *(listings.models, listings.datasets),
):
    app.command()(verb)
app.add_typer(store_app, name="store")
for name, verb in (
    ("ls", listings.store_ls),
    ("rm", listings.store_rm),
    ("verify", listings.store_verify),
):
    store_app.command(name)(verb)


judges_app = typer.Typer(no_args_is_help=True, help="Hold judges against people.")
judges_app.command("measure")(judging.measure)
app.add_typer(judges_app, name="judges")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.line(f"ss-lens {version('ss_lens')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Selective Steering on TransformerLens: calibrate, steer and measure a language model."""


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, Ctrl-C is 130."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("ss_lens").addHandler(handler)
    logging.getLogger("ss_lens").setLevel(logging.INFO)
    console.warnings_in_one_line()
    try:
        app(prog_name="ss-lens")
    except UserError as error:
        console.error(str(error))
        sys.exit(2)
