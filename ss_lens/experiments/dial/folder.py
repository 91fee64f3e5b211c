"""The folder of a main job: claimed by one run, resumed by the same, read back when finished."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.measures import Measures
from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_path
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_can_be_made, read_json, sha256_of_file
from ss_lens.core.replace import holds_nothing, remove_leftovers
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.experiments.dial.config import RunConfig
from ss_lens.experiments.dial.run import Run
from ss_lens.geometry.strengths import reduced
from ss_lens.scoring.refusal import BY_PHRASES, counts_by_phrases

logger = logging.getLogger(__name__)
FORMAT = 3
EARLIER = (1, 2)
"""Formats of earlier versions, which kept the answers at all angles and no dial (1: no digests
either). Their runs are read, and not resumed."""
UNSEALED = 1
EARLIER_TABLES = ("responses.csv", "scores.csv")
ASKED, MOVED = LATER = ("asked.csv", "moved.csv")
"""Runs from before there were these are read without them."""
TEXTS = ("prompt", "prompt_class", "response")
"""Columns of the answers that hold texts."""
TABLES = (*EARLIER_TABLES, "dial.csv", "choices.csv", *LATER)
FINISHED = "tables.json"
"""What is written when all tables are there: their digests, and the verdict."""


def check_run_dir(
    run_dir: Path,
    dataset: ContrastiveDataset,
    config: RunConfig,
    behaviour: Behaviour | None = None,
) -> dict[str, Any]:
    """Refuse, without a model, what :func:`run_main_job` would refuse; return what is asked for.

    Raises:
        UserError: the dataset cannot be split so, or ``run_dir`` holds something else.
    """
    dataset.split(dev=config.dev, test=config.test, seed=config.seed)
    asked = {
        "format": FORMAT,
        "config": config.as_json(),
        "dataset": {"name": dataset.name, "digest": dataset.digest},
        "ss_lens": version("ss_lens"),
    }
    if behaviour is not None and not behaviour.measures.is_refusal:
        asked["behaviour"] = behaviour.as_json()
    check_can_be_made(run_dir)
    _check_same(run_dir, asked)
    return asked


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write ``run.json``, or make sure that the one there describes this very run."""
    _check_same(folder, identity)
    remove_leftovers(folder)
    if not (folder / "run.json").exists():
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_sealed_json(folder / "run.json", {**identity, "started": started})


def finish(folder: Path, tables: Sequence[pd.DataFrame], verdict: str, shown_by: str = "") -> None:
    """Write the tables in the order of :data:`TABLES`, and beside them what they are.

    Args:
        folder: of the run.
        tables: of a :class:`Run`.
        verdict: what turned.
        shown_by: the judge that says ``shown``; nothing is written of it where there is none.
    """
    for name, table in zip(TABLES, tables, strict=True):
        with atomic_path(folder / name) as temporary:
            table.to_csv(temporary, index=False)
    digests = {name: sha256_of_file(folder / name) for name in TABLES}
    judged = {"shown_by": shown_by} if shown_by else {}
    write_sealed_json(folder / FINISHED, {**digests, "verdict": verdict, **judged})


def load_run(run_dir: Path | str) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is not one, is unfinished or damaged, or was written by another version's
            format.
    """
    check_path("run_dir", run_dir)
    folder = Path(run_dir)
    identity = run_identity(folder)
    sealed, current = identity["format"] != UNSEALED, identity["format"] == FORMAT
    if not is_finished(folder):
        raise UserError(f"the run at {folder} is not finished; start `ss-lens run` on it again.")
    told = _check_tables(folder, TABLES if current else EARLIER_TABLES) if sealed else {}
    names = pd.read_csv(folder / "responses.csv", nrows=0).columns
    # An answer may be empty or read "NA": only numbers may be missing, and a score may be none.
    responses = pd.read_csv(
        folder / "responses.csv",
        keep_default_na=False,
        na_values={name: [""] for name in names if name not in TEXTS},
    )
    if counts_by_phrases(responses):
        logger.info("the run at %s %s; run it again into another --out", folder, BY_PHRASES)
    turned = [name for name in (TABLES if current else EARLIER_TABLES)[1:] if name not in LATER]
    others = [pd.read_csv(folder / name) for name in turned]
    tables = [
        t.assign(angle_deg=t["angle_deg"].astype(float).map(reduced)) for t in (responses, *others)
    ]
    config = RunConfig.from_json(identity["config"])
    calibration = Calibration.load(folder / "calibration")
    run = Run(config, calibration, identity["activations"], tables[0], tables[1])
    if not current:
        return run
    asked = pd.read_csv(folder / ASKED) if ASKED in told else run.asked
    moved = pd.read_csv(folder / MOVED) if MOVED in told else run.moved
    kept = identity.get("behaviour")
    named = {} if kept is None else {field.name: kept.get(field.name) for field in fields(Measures)}
    return replace(
        run,
        dial=tables[2],
        choices=tables[3],
        asked=asked,
        moved=moved,
        verdict=told["verdict"],
        measures=Measures(**named),
        shown_by=told.get("shown_by", ""),  # earlier versions did not say
    )


def is_finished(run_dir: Path) -> bool:
    """Whether a run has its tables, the last of which is written when all the rest is.

    Raises:
        UserError: what :func:`run_identity` says.
    """
    sealed = run_identity(run_dir)["format"] != UNSEALED
    return (run_dir / (FINISHED if sealed else EARLIER_TABLES[-1])).exists()


def run_identity(run_dir: Path) -> dict[str, Any]:
    """What a run says of itself, finished or not.

    Returns:
        ``format``, ``config``, ``dataset`` (name and digest), ``ss_lens`` (the version),
        ``activations`` (keys of ``train`` and ``test``), ``started``; and ``behaviour``, where that
        is not refusal.

    Raises:
        UserError: there is no run, it is damaged, or of a format that this version does not read.
    """
    found = read_json(run_dir / "run.json", "run (run.json)")
    known = found.get("format") if isinstance(found, dict) else None
    if known not in (FORMAT, *EARLIER):
        raise UserError(
            f"the run at {run_dir} has format {known}, this version reads {FORMAT}; run it again."
        )
    return _identity(run_dir / "run.json")


def _identity(path: Path) -> dict[str, Any]:
    """What ``run.json`` says of its run.

    Raises:
        UserError: damaged, or a file of another kind in its place.
    """
    keys = {"format", "config", "dataset", "activations", "ss_lens", "started"}
    remedy = "remove the run and make it again"
    identity = read_sealed_json(path, "run (run.json)", unsealed=keys, remedy=remedy)
    if identity.keys() - {"behaviour"} != keys:
        raise UserError(f"{path} describes no run (another file is in its place); {remedy}.")
    return identity


def _check_same(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than the run that is asked for."""
    path = folder / "run.json"
    if not path.exists():
        if not holds_nothing(folder):
            raise UserError(f"{folder} is not empty and holds no run; choose another --out.")
        return
    known = _identity(path)
    if known.get("format") in EARLIER:
        raise UserError(
            f"{folder} holds a run of an earlier version, which can be read and not resumed; "
            "choose another --out, or remove that folder."
        )
    keys = {*asked, *({"behaviour"} & known.keys())}
    if differing := sorted(key for key in keys if known.get(key) != asked.get(key)):
        raise UserError(
            f"{folder} holds a run that differs in {', '.join(differing)}; choose another "
            "--out, or remove that folder."
        )


def _check_tables(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """What ``tables.json`` says, once the tables are those that it was written beside."""
    remedy = "start `ss-lens run` on it again, which makes them from the answers that it keeps"
    told = read_sealed_json(folder / FINISHED, f"list of tables ({FINISHED})", remedy=remedy)
    for name in (name for name in names if name not in LATER or name in told):
        path = folder / name
        if not path.exists() or sha256_of_file(path) != told.get(name):
            raise UserError(
                f"{path} is missing or was changed since the run (its checksum differs); {remedy}."
            )
    return told
