"""An analysis as a command: the options and prompts that all share, table and figure on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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
        UserError: a static format without kaleido and the browser that it draws with.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".html":
            figure.write_html(temporary, include_plotlyjs=True)
            return
        try:
            figure.write_image(temporary, scale=2 if path.suffix == ".png" else 1)
        except (ImportError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path.name} could not be drawn ({str(error).strip().splitlines()[0]}). PDF, SVG "
                'and PNG need the extra "figures" (pip install "ss_lens[figures]") and Chrome or '
                "Chromium (install one, or run plotly_get_chrome); HTML needs neither."
            ) from error


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
