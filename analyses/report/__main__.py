"""``python -m analyses.report FOLDER`` writes the report; ``ss-lens report`` is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses import output
from analyses.report.write import write_report


def main(
    folder: Annotated[Path, typer.Argument(help="What `ss-lens run`, `sweep` or `paper` saved.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; default FOLDER/report.html.")] = None,
    keep_answers: Annotated[
        bool,
        typer.Option("--keep-answers", help="Of a sweep, show answers to harmful prompts in full."),
    ] = False,
) -> None:
    """Write one self-contained page of a run, a sweep or the paper's tables."""
    print(write_report(folder, out, keep_answers=keep_answers))


if __name__ == "__main__":
    output.command(main)
