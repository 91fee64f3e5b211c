"""``python -m analyses RUN_DIR`` draws the figures of a run from its directory and the store."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated

import pandas as pd
import plotly.graph_objects as go
import typer

from analyses import output, printed, run_figures, style
from analyses.run_parts import RunParts
from ss_lens import Store
from ss_lens.core.progress import progress_bar

PRINTED = frozenset(module.name for module in iter_modules(printed.__path__))
"""The figures that can be drawn for print."""


def draw(run_dir: Path, store: Store | None = None) -> dict[str, tuple[pd.DataFrame, go.Figure]]:
    """The tables and figures of a run, one of each module in :mod:`analyses.run_figures`.

    A module returns ``None`` for a run of an earlier version that lacks what it draws.
    """
    parts = RunParts.load(run_dir, store)
    names = sorted(module.name for module in iter_modules(run_figures.__path__))
    drawn = {}
    with progress_bar(len(names), "draw", "figure") as bar:
        for name in names:
            made = import_module(f"analyses.run_figures.{name}").draw(parts)
            if made is not None:
                drawn[name] = made
            bar.update()
    return drawn


def main(
    run_dir: Annotated[Path, typer.Argument(help="What `ss-lens run` saved.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default RUN_DIR/figures.")] = None,
    paper: output.Paper = False,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="html, pdf, svg or png; may be repeated.")
    ] = None,
) -> None:
    """Draw every figure of a run; tables are written beside them.

    With --paper they are drawn for print into the folder `paper`, without a browser.
    """
    folder, chosen = out or run_dir / "figures", output.checked(formats, paper)
    for name, (table, figure) in draw(run_dir).items():
        make = None
        if name in PRINTED:
            make = partial(output.printed, name, style.subtitle_of(figure), table)
        output.save(folder, name, table, figure, chosen, make)


if __name__ == "__main__":
    output.command(main)
