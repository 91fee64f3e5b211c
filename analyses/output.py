"""An analysis as a command: the options and prompts that all share, table and figure on disk."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape as escape_html
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import plotly.graph_objects as go
import typer
from rich.console import Console
from rich.markup import escape

from analyses import style
from ss_lens import ContrastiveDataset, UserError, load_dataset
from ss_lens.cli.console import warnings_in_one_line
from ss_lens.cli.options import Dtype as Dtype, Model as Model
from ss_lens.core.files import atomic_path, disk_errors
from ss_lens.datasets.contrastive import DatasetSplit
from ss_lens.models.sources import default_dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    figure.write_image(sys.argv[1], scale=int(sys.argv[2]), width=int(sys.argv[3]))
except (ImportError, ValueError, RuntimeError) as error:
    print(error)
    sys.exit({NOT_DRAWN})
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; font-family: "DejaVu Sans", Arial, sans-serif; background: white; }}
header {{ margin: 12px; }}
h1 {{ font-size: 17px; margin: 0 0 4px; font-weight: normal; }}
p {{ font-size: 12px; margin: 0; color: #444; }}
main {{ overflow-x: auto; }}
main > div {{ min-width: {narrowest}px; height: auto !important; }}
</style>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<main>{figure}</main>
</body>
</html>
"""
Dataset = Annotated[
    str | None,
    typer.Option(help="Embedded name or file.", show_default="as the main job takes for the model"),
]
Out = Annotated[Path, typer.Option(help="Folder.")]
PAPER = "paper"
"""PDF and SVG for one and two columns, with tables for LaTeX and Markdown."""
Paper = Annotated[
    bool, typer.Option("--paper", help="PDF and SVG for one and two columns, and tables.")
]
Formats = Annotated[
    list[str] | None, typer.Option("--format", help="html, pdf, svg or png; may be repeated.")
]


@dataclass(frozen=True, eq=False)
class Print:
    """What goes into a paper beside a figure for the screen.

    Attributes:
        figure: draws at the width of one or two columns.
        table: with its numbers rounded and named for readers.
        caption: what is drawn, and of what.
    """

    figure: Callable[[int], Figure]
    table: pd.DataFrame
    caption: str


def printed(module: str, subtitle: str, *given: Any) -> Print:
    """What the module of that name draws for print, of a table and its context.

    Args:
        module: of :mod:`analyses.printed`; with a dot, of an analysis of its own.
        subtitle: what was measured, and on what.
        given: what the module's functions take.

    Raises:
        UserError: Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UserError(
            "figures in PDF, SVG and PNG need Matplotlib, which is not installed; run "
            'pip install "ss_lens[paper]", or use --format html.'
        )
    drawing = import_module(f"analyses.{module if '.' in module else f'printed.{module}'}")
    caption = f"{drawing.CAPTION} Data: {subtitle}."
    return Print(
        lambda columns: drawing.figure(*given, columns=columns), drawing.brief(*given), caption
    )


def dataset_name(dataset: str | None, model: str) -> str:
    """The dataset that is asked for, or the one that the main job takes for the model."""
    return default_dataset(model) if dataset is None else dataset


def split(dataset: str, seed: int = 0, test: int = 24) -> DatasetSplit:
    """The same training part for every analysis by default: the store then has its activations."""
    return load_dataset(dataset).split(dev=16, test=test, seed=seed)


def held_out(parts: DatasetSplit, prompts: int) -> ContrastiveDataset:
    """The first test prompts of each class.

    Raises:
        UserError: fewer than one, or more than there are.
    """
    most = min(len(parts.test.positive), len(parts.test.negative))
    if not 1 <= prompts <= most:
        raise UserError(f"--prompts must be 1 to {most} per class; got {prompts}.")
    return parts.test.head(prompts)


def scan(low: float | int, high: float | int, step: float | int) -> list[float]:
    """The angles from ``low`` to ``high``, both among them where the steps fit.

    Raises:
        UserError: fewer than two angles, more than anybody means, or one that is there twice.
    """
    from ss_lens import RotateBy
    from ss_lens.generation.angle_batch import checked_angles
    from ss_lens.geometry.strengths import MOST_ANGLES

    steps = (high - low) / step if step > 0 else 0.0
    if not 1 <= steps <= MOST_ANGLES:
        raise UserError(
            f"--from {low:g}, --to {high:g} and --step {step:g} give no scan, expected 2 to "
            f"{MOST_ANGLES:,} angles; write for instance --from 0 --to 180 --step 45."
        )
    angles = [low + step * i for i in range(int(steps + 1e-9) + 1)]
    return [*checked_angles(RotateBy, angles)]


def around(step: float | int) -> list[float]:
    """The angles of a whole turn from 0 on.

    Raises:
        UserError: a step of less than a tenth of a degree, or of more than half a turn.
    """
    from ss_lens.geometry.strengths import MOST_ANGLES

    if not 360 / MOST_ANGLES <= step <= 180:
        raise UserError(f"--step must be at least 0.1° and at most 180°; got {step:g}.")
    return [float(step * i) for i in range(math.ceil(360 / step - 1e-9))]


def checked(formats: Sequence[str] | None, paper: bool = False) -> Sequence[str]:
    """The formats asked for, HTML where none is named; :data:`PAPER` stands for the whole set.

    Raises:
        UserError: an unknown format, or one beside the set for papers.
    """
    if paper and formats:
        raise UserError(
            f"--paper and --format {formats[0]} were both given; --paper writes PDF and SVG by "
            "itself, so give one of them, or run twice."
        )
    if paper:
        return (PAPER,)
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
            temporary.write_text(page(figure), "utf-8")
            return
        if problem := _problem_of_drawing(figure, temporary):
            raise UserError(
                f"{path.name} could not be drawn ({problem}). PDF, SVG "
                'and PNG need the extra "figures" (pip install "ss_lens[figures]") and Chrome or '
                "Chromium (install one, or run plotly_get_chrome); HTML needs neither."
            )


def page(figure: go.Figure) -> str:
    """A self-contained page that is as wide as its window, the title above as text that wraps."""
    told = style.told_of(figure)
    drawn = go.Figure(figure)
    drawn.update_layout(title=None, margin_t=told.get("top", 40), height=told.get("height"))
    return PAGE.format(
        title=escape_html(told.get("title", "")),
        subtitle=escape_html(told.get("subtitle", "")),
        narrowest=told.get("narrowest", 0),
        figure=drawn.to_html(
            full_html=False,
            include_plotlyjs=True,
            config={"responsive": True},
            default_width="100%",
            post_script=style.RESPONSIVE,
        ),
    )


def _problem_of_drawing(figure: go.Figure, path: Path) -> str | None:
    """Draw with a browser and return what went wrong.

    A browser may hang, so it is started by a process of its own, which is ended with all that it
    started.
    """
    scale = "2" if path.suffix == ".png" else "1"
    command = [sys.executable, "-c", DRAWING, str(path), scale, str(style.WIDTH)]
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
    make_print: Callable[[], Print] | None = None,
) -> None:
    """Write ``name``'s table and figure into ``folder`` and print the figures' paths.

    PDF, SVG and PNG are drawn for print, at the width of two columns, where ``make_print`` is
    given; else they need a browser.
    """
    with disk_errors(folder), atomic_path(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)
    for suffix in formats:
        path = folder / f"{name}.{suffix}"
        if suffix == PAPER:
            save_print(folder / PAPER, name, make_print)
            continue
        if suffix == "html" or make_print is None:
            write(figure, path)
        else:
            _write_print(make_print().figure(2), path)
        print(path)


def save_print(folder: Path, name: str, make_print: Callable[[], Print] | None) -> None:
    """Write a figure as PDF and SVG at both widths, and its table for LaTeX and as Markdown.

    A figure without a form for print is named as left out.
    """
    if make_print is None:
        print(f"{name} has no form for print and is left out")
        return
    from analyses.printed.tables import latex_parts, markdown, negative

    made = make_print()
    for columns in (1, 2):
        for suffix in ("pdf", "svg"):
            path = folder / f"{name}_{columns}col.{suffix}"
            _write_print(made.figure(columns), path)
            print(path)
    rows = negative(markdown([*made.table.columns], made.table.itertuples(index=False)))
    texts = {
        "tex": latex_parts(made.table, made.caption, name),
        "md": f"{rows}\n\n{made.caption}\n",
    }
    for suffix, text in texts.items():
        path = folder / f"{name}.{suffix}"
        with disk_errors(folder), atomic_path(path) as temporary:
            temporary.write_text(text, "utf-8")
        print(path)


def _write_print(figure: Figure, path: Path) -> None:
    from analyses.printed import sheet

    with disk_errors(path.parent), atomic_path(path) as temporary:
        sheet.save(figure, temporary, path.suffix[1:], path.stem.replace("_", " "))


def command(function: Callable[..., Any]) -> None:
    """Run a function as a command line; a user's mistake is one line and exit code 2."""
    warnings_in_one_line()
    try:
        typer.run(function)
    except UserError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
