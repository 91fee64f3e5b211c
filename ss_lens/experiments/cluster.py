"""A sweep's workers through submitit: as processes of this machine, or as jobs of Slurm.

A worker begins by importing this module, which loads neither torch nor pandas: it must notice that
its sweep has ended while it still loads them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import read_json, write_json

if TYPE_CHECKING:
    from ss_lens.activations.store import Store
    from ss_lens.experiments.cells import CellStore
    from ss_lens.experiments.config import SweepConfig
    from ss_lens.experiments.grid import CellGroup
    from ss_lens.experiments.worker import Outcome

POLL_SECONDS = 0.5
TIMEOUT_MINUTES = {"local": 7 * 24 * 60, "slurm": 24 * 60}
"""Unless cluster_parameters has a timeout_min; submitit's own is a few minutes."""
VISIBLE_SECONDS = 90.0
"""How long a network file system may take to show another machine's files; NFS caches for 60 s."""

logger = logging.getLogger(__name__)


def finish_on_cluster(
    config: SweepConfig,
    groups: Sequence[CellGroup],
    cells: CellStore,
    store: Store,
    *,
    finished: Callable[[int], None],
) -> list[Outcome]:
    """As :func:`finish_groups`, by ``config.workers`` processes that share the cells.

    Every worker goes through all groups and skips what others have finished, so that one which
    lives to the end suffices. All compute in one dtype
    (:func:`ss_lens.experiments.inputs.settled`). submitit carries the call to a worker in a pickle
    of its own; what comes back is JSON and Parquet. Local workers end with this process, however it
    ends; jobs of Slurm are cancelled when it is interrupted, and end by themselves when it is
    killed.

    Raises:
        UserError: submitit is missing or refuses the parameters, what a worker objected to, or
            that no worker lived to the end.
    """
    executor = _executor(config, cells.folder)
    logs = cells.folder.resolve() / "logs"
    _remove_reports_of_the_killed(logs)
    reports = logs / f"reports-{time.time_ns()}"
    reports.mkdir(parents=True)
    call = {
        "config": config.model_dump(mode="json"),
        "groups": [group.as_json() for group in groups],
        "folder": str(cells.folder.resolve()),
        "store": str(store.root.resolve()),
        "reports": str(reports),
    }
    starts = [worker * len(groups) // config.workers for worker in range(config.workers)]
    alive_lock = FileLock(reports / ALIVE)
    alive_lock.acquire()
    jobs: list[Any] = []
    try:
        jobs += _submitted(executor, [json.dumps({**call, "first": start}) for start in starts])
        seen: set[str] = set()
        alive = True
        while alive:
            alive = not all(job.done() for job in jobs)
            for mark in sorted({path.name for path in reports.glob("done-*")} - seen):
                seen.add(mark)
                finished(int(mark.removeprefix("done-")))
            time.sleep(POLL_SECONDS if alive else 0)
        return reported(jobs, reports)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()
        alive_lock.release()
        # A network file system may still show a file that was removed; the next sweep removes it.
        shutil.rmtree(reports, ignore_errors=True)


def work(call: str) -> None:
    """What one worker runs: ``call`` is JSON, and so is the report that it leaves."""
    given = json.loads(call)
    reports = Path(given["reports"])
    if given["config"]["cluster"] == "local":
        end_with(reports / ALIVE)  # first, since a killed sweep's reports are soon cleared away

    import torch

    from ss_lens.activations.store import Store
    from ss_lens.experiments import worker
    from ss_lens.experiments.cells import CellStore
    from ss_lens.experiments.config import SweepConfig
    from ss_lens.experiments.grid import CellGroup
    from ss_lens.experiments.inputs import settled

    config = SweepConfig(**given["config"])
    if config.cluster == "local":
        # Workers that each take all cores slow one another down many times over.
        torch.set_num_threads(max(1, torch.get_num_threads() // config.workers))
    _wait_for(reports)
    _wait_for(Path(given["folder"]) / "sweep.json")
    cells = CellStore(Path(given["folder"]))
    try:
        outcomes = worker.finish_groups(
            settled(config, cells),
            [CellGroup.from_json(group) for group in given["groups"]],
            cells,
            Store(given["store"]),
            finished=lambda place: (reports / f"done-{place}").touch(),
            first=given["first"],
        )
        report: dict[str, Any] = {"outcomes": [outcome.as_json() for outcome in outcomes]}
    except UserError as error:
        report = {"error": str(error)}
    write_json(reports / f"report-{given['first']}-{time.time_ns()}.json", report)


ALIVE = "alive.lock"
"""Held by the process that waits for the workers; the system releases it however that one ends."""


def end_with(lock: Path) -> None:
    """End this process as soon as no other one holds ``lock``.

    A parent's number would not do: submitit has a process of its own between, and the number of a
    killed process stays taken until its own parent has asked for it.
    """

    def watch() -> None:
        while _is_held(lock):
            time.sleep(POLL_SECONDS)
        logger.error("the sweep has ended; so does this worker")
        os._exit(1)

    threading.Thread(target=watch, name="ss_lens-watchdog", daemon=True).start()


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # removed in between
        return False


def _remove_reports_of_the_killed(logs: Path) -> None:
    for reports in logs.glob("reports-*"):
        if (reports / ALIVE).exists() and not _is_held(reports / ALIVE):
            shutil.rmtree(reports, ignore_errors=True)


def _wait_for(path: Path) -> None:
    """Until ``path``, which another machine made, is visible on this one."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{path} is not visible on this machine after {VISIBLE_SECONDS:g} s; the folder of "
                "the sweep must be on a file system that all workers share."
            )
        time.sleep(POLL_SECONDS)
        if path.parent.exists():
            os.listdir(path.parent)  # refreshes what the system remembers of a folder


def _executor(config: SweepConfig, folder: Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            f"cluster: {config.cluster} needs submitit, which is not installed; "
            'pip install "ss_lens[cluster]".'
        ) from error
    assert config.cluster is not None
    defaults = {"name": "ss_lens_sweep", "timeout_min": TIMEOUT_MINUTES[config.cluster]}
    try:
        executor = submitit.AutoExecutor(folder=folder / "logs" / "%j", cluster=config.cluster)
        executor.update_parameters(**{**defaults, **config.cluster_parameters})
    except (RuntimeError, NameError, ValueError, AssertionError) as error:
        raise UserError(
            f"submitit refuses cluster: {config.cluster} with cluster_parameters "
            f"{config.cluster_parameters}: {first_line(error)}"
        ) from error
    return executor


def _submitted(executor: Any, calls: list[str]) -> list[Any]:
    from submitit.core.utils import FailedSubmissionError

    try:
        return executor.map_array(work, calls)
    except FailedSubmissionError as error:
        raise UserError(
            f"the cluster does not take the jobs: {first_line(error)} Change cluster_parameters."
        ) from error


def reported(jobs: Sequence[Any], reports: Path) -> list[Outcome]:
    """What the workers report, all the same; an error only where none got to the end.

    A job that ended well has left a report, which a network file system may show late.

    Raises:
        UserError: what a worker objected to, that all died, or reports that do not appear.
    """
    ended_well = sum(job.exception() is None for job in jobs)
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (found := sorted(reports.glob("report-*.json"))) and ended_well:
        if time.monotonic() > deadline:
            raise UserError(
                f"{ended_well} of {len(jobs)} workers finished, but their reports are not visible "
                f"in {reports} after {VISIBLE_SECONDS:g} s. Finished cells are kept; run the same "
                "command again, in a folder that all machines share."
            )
        time.sleep(POLL_SECONDS)
    from ss_lens.experiments.worker import Outcome

    said = [read_json(path, "report of a worker") for path in found]
    whole = [report["outcomes"] for report in said if "outcomes" in report]
    if whole:
        if len(whole) < len(jobs):
            logger.warning(
                "%d of %d workers ended early; the others finished the sweep",
                len(jobs) - len(whole),
                len(jobs),
            )
        return [Outcome.from_json(values) for values in whole[0]]
    if said:
        raise UserError(said[0]["error"])
    raise UserError(
        f"all {len(jobs)} workers ended early ({first_line(jobs[0].exception())}); their logs are "
        f"in {reports.parent}. Finished cells are kept; run the same command again."
    )
