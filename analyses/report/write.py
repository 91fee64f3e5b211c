"""Find out what a folder holds, gather the contents of its report, and write the page."""

from __future__ import annotations

from pathlib import Path

from analyses.report.contents import Contents
from analyses.report.page import page
from ss_lens import Store, UserError
from ss_lens.core.files import atomic_path

NAME = "report.html"


def write_report(folder: Path, out: Path | None = None, *, keep_answers: bool = False) -> Path:
    """Write the report of what ``ss-lens run``, ``sweep``, ``ablate`` or ``paper`` saved.

    Returns its path.

    This is what the entry point ``report`` of the group ``ss_lens.commands`` names.

    Args:
        folder: of the run or the sweep.
        out: the HTML file; ``None`` is ``report.html`` in the folder.
        keep_answers: of a sweep, show what answers a harmful request in full.

    Raises:
        UserError: the folder holds none of these, or what it holds is damaged.
    """
    contents = gather(folder, keep_answers=keep_answers)
    path = folder / NAME if out is None else out
    with atomic_path(path) as temporary:
        temporary.write_text(page(contents), "utf-8")
    return path


def gather(folder: Path, *, keep_answers: bool = False, store: Store | None = None) -> Contents:
    """The contents of a folder's report.

    Raises:
        UserError: the folder holds none of these, or what it holds is damaged.
    """
    if keep_answers and not (folder / "sweep.json").exists():
        raise UserError(
            f"{folder} holds no sweep, and --keep-answers of a report is for sweeps: a run keeps "
            "answers as `ss-lens run --keep-answers` says. Leave it out."
        )
    if (folder / "run.json").exists():
        from analyses.report.sources.run import of_run

        return of_run(folder, store)
    if (folder / "ablations" / "ablations.json").exists():
        from analyses.report.sources.ablations import of_ablations

        return of_ablations(folder, keep_answers=keep_answers)
    if (folder / "sweep.json").exists():
        from analyses.report.sources.sweep import of_sweep

        return of_sweep(folder, keep_answers=keep_answers)
    if (folder / "paper.json").exists():
        from analyses.report.sources.paper import of_paper

        return of_paper(folder, store)
    raise UserError(
        f"{folder} holds no run (run.json), no sweep (sweep.json) and no finished tables of the "
        "paper (paper.json); give a folder that `ss-lens run`, `sweep`, `ablate` or `paper` made."
    )
