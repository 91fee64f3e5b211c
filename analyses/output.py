"""An analysis as a command: the options and prompts that all share, table and figure on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import plotly.graph_objects as go
import typer
from rich.console import Console
from rich.markup import escape

from ss_lens import UserError, load_dataset
from ss_lens.core.files import atomic_path, disk_errors
from ss_lens.datasets.contrastive import DatasetSplit

FORMATS = ("html", "pdf", "svg", "png")
DRAWING_SECONDS = 120.0
"""How long a browser may take over one figure; drawing takes seconds."""
NOT_DRAWN = 3
"""Exit code of :data:`DRAWING`, which then prints why."""
DRAWING = f"""
import subprocess, sys
class InThisSession(subprocess.Popen):
    def __init__(self, *given, start_new_session=False, **named):
        super().__init__(*given, **named)
subprocess.Popen = InThisSession  # so that the browser can be ended together with this process
from plotly.io import from_json
figure = from_json(sys.stdin.read(), skip_invalid=True)
try:
    figure.write_image(sys.argv[1], scale=int(sys.argv[2]))
except (ImportError, ValueError, RuntimeError) as error:
    print(error)
    sys.exit({NOT_DRAWN})
"""

Model = Annotated[str, typer.Option(help="Registered name, Hub id, local folder or .gguf file.")]
Dataset = Annotated[str, typer.Option(help="Embedded name or file.")]
Out = Annotated[Path, typer.Option(help="Folder.")]
Formats = Annotated[
    list[str] | None, typer.Option("--format", help="html, pdf, svg or png; may be repeated.")
]


def split(dataset: str, seed: int = 0, test: int = 24) -> DatasetSplit:
    """The same training part for every analysis by default: the store then has its activations."""
    return load_dataset(dataset).split(dev=16, test=test, seed=seed)


def checked(formats: Sequence[str] | None) -> Sequence[str]:
    """The formats asked for, HTML where none is named.

    Raises:
        UserError: an unknown format.
    """
    if unknown := set(formats or ()) - set(FORMATS):
        raise UserError(f"unknown --format {min(unknown)!r}; use one of {', '.join(FORMATS)}.")
    return formats or ("html",)


def write(figure: go.Figure, path: Path) -> None:
    """Write a figure in the format of its suffix; HTML is self-contained.

    Raises:
        UserError: a static format without kaleido and the browser that it draws with, or a browser
            that does not answer.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".html":
            figure.write_html(temporary, include_plotlyjs=True)
            return
        if problem := _problem_of_drawing(figure, temporary):
            raise UserError(
                f"{path.name} could not be drawn ({problem}). PDF, SVG "
                'and PNG need the extra "figures" (pip install "ss_lens[figures]") and Chrome or '
                "Chromium (install one, or run plotly_get_chrome); HTML needs neither."
            )


def _problem_of_drawing(figure: go.Figure, path: Path) -> str | None:
    """Draw with a browser and return what went wrong.

    A browser may hang, so it is started by a process of its own, which is ended with all that it
    started.
    """
    command = [sys.executable, "-c", DRAWING, str(path), "2" if path.suffix == ".png" else "1"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    ) as drawing:
        try:
            told, traceback = drawing.communicate(figure.to_json(), timeout=DRAWING_SECONDS)
        except subprocess.TimeoutExpired:
            return f"the browser did not answer within {DRAWING_SECONDS:g} s"
        finally:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(drawing.pid, signal.SIGKILL)
    if drawing.returncode == NOT_DRAWN:
        return told.strip().splitlines()[0]
    assert drawing.returncode == 0, traceback
    return None


def save(
    folder: Path,
    name: str,
    table: pd.DataFrame,
    figure: go.Figure,
    formats: Sequence[str],
) -> None:
    """Write ``name``'s table and figure into ``folder`` and print the figures' paths."""
    with disk_errors(folder), atomic_path(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)
    for suffix in formats:
        write(figure, folder / f"{name}.{suffix}")
        print(folder / f"{name}.{suffix}")


def command(function: Callable[..., Any]) -> None:
    """Run a function as a command line; a user's mistake is one line and exit code 2."""
    try:
        typer.run(function)
    except UserError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
