"""What the command line prints: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ss_lens.calibration.calibration import Calibration

Options = ParamSpec("Options")
_err = Console(stderr=True, emoji=False)
_out = Console(emoji=False)
if not _out.is_terminal:
    _out = Console(width=200, emoji=False)  # a file or a pipe has no width of its own


def error(message: str) -> None:
    """One line on standard error."""
    _err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)


def warnings_in_one_line() -> None:
    """Print what this package warns of without the line of code that it was called from."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and {"ss_lens", "analyses"} & {*Path(filename).parts}:
            note(f"warning: {message}")
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show


def note(message: str) -> None:
    _err.print(escape(message), soft_wrap=True, highlight=False)


def line(message: str) -> None:
    _out.print(escape(message), soft_wrap=True, highlight=False)


def keeps(what: str) -> Callable[[Callable[Options, None]], Callable[Options, None]]:
    """Let a verb end with exit code 130 at Ctrl-C, and say what it leaves behind.

    Args:
        what: the truth for this verb, at whichever moment the signal comes.
    """

    def decorated(verb: Callable[Options, None]) -> Callable[Options, None]:
        @wraps(verb)
        def interruptible(*arguments: Options.args, **options: Options.kwargs) -> None:
            try:
                verb(*arguments, **options)
            except KeyboardInterrupt:
                note(f"interrupted; {what}")
                raise typer.Exit(130) from None

        return interruptible

    return decorated


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """Names and values, one per line."""
    if as_json:
        print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        line(f"{name.replace('_', ' '):<{width}}  {shown or 'none'}")


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool) -> None:
    """A table, or a JSON list of objects."""
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    _out.print(table)


def print_answer(text: str, request: Mapping[str, Any], as_json: bool) -> None:
    """An answer; with JSON, what was asked beside it."""
    if as_json:
        print_json({**request, "response": text})
    else:
        line(text)


def summary(calibration: Calibration) -> dict[str, Any]:
    """What a calibration found, in a few lines."""
    from ss_lens.calibration.site_selection import rule_name

    spec = calibration.spec
    return {
        "model": f"{spec.model.name} ({spec.model.n_layers} layers, width {spec.model.d_model}, "
        f"{spec.model.dtype})",
        "calibrated_on": f"{spec.dataset_name}: {spec.n_positive} positive, "
        f"{spec.n_negative} negative prompts",
        "sites": len(calibration.sites),
        "without_a_direction": [str(site) for site in calibration.candidates.excluded],
        "direction_site": str(calibration.direction_site),
        f"steered_sites_by_rule_{rule_name(calibration.rule)}": [
            str(site) for site in calibration.selected_sites
        ],
    }
