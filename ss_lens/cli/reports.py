"""The report of a run, a sweep or the paper's tables, made by whoever offers one.

Reports are drawn by the analyses, which build on this package and which it never imports. They are
found by the entry point ``report`` of the group ``ss_lens.commands``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import typer

from ss_lens.cli import console
from ss_lens.cli.console import keeps
from ss_lens.core.errors import UserError

GROUP, NAME = "ss_lens.commands", "report"


@runtime_checkable
class WriteReport(Protocol):
    """What the entry point names: it writes the report of a folder and returns its path."""

    def __call__(
        self, folder: Path, out: Path | None = None, *, keep_answers: bool = False
    ) -> Path: ...


@keeps("an earlier report stays as it was.")
def report(
    folder: Annotated[
        Path, typer.Argument(help="What `ss-lens run`, `sweep` or `paper` saved.", metavar="RUN")
    ],
    out: Annotated[Path | None, typer.Option(help="HTML file; default RUN/report.html.")] = None,
    keep_answers: Annotated[
        bool,
        typer.Option("--keep-answers", help="Of a sweep, show answers to harmful prompts in full."),
    ] = False,
) -> None:
    """One self-contained page: the verdict, the dial, the sites, all samples."""
    console.line(str(writer()(folder, out, keep_answers=keep_answers)))


def writer() -> WriteReport:
    """The function that writes reports.

    Raises:
        UserError: nothing that is installed offers one.
    """
    found = _writer()
    if found is None:
        raise UserError(
            f"no report can be made: {_ABSENT}; expected the entry point {NAME!r} of the group "
            f"{GROUP!r}. {_REMEDY}"
        )
    return found


def report_of_job(folder: Path) -> Path | None:
    """Write the report of a job that has just finished; without the analyses, say so in a line."""
    found = _writer()
    if found is None:
        console.note(f"no report was written: {_ABSENT}. {_REMEDY}")
        return None
    return found(folder)


_ABSENT = "the analyses, which draw it, are not installed with this ss_lens"
_REMEDY = "Install the package again (`make setup`, or pip install -e . in its folder)."


def _writer() -> WriteReport | None:
    for point in entry_points(group=GROUP, name=NAME):
        return point.load()
    return None
