"""Ctrl-C ends with 130 and a true word on what is kept."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ss_lens.cli import console
from ss_lens.models import forward
from tests.cli.command import CommandLine


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C in the middle of the model's pass number ``after``."""
    original, calls = forward.run, iter(range(10_000))

    def run(*arguments: Any, **options: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(forward, "run", run)


def test_ctrl_c_in_a_capture_exits_with_130_and_the_same_command_completes(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("ss_lens.activations.capture"), "SHARD_SIZE", 8)
    command = ("capture", "--model", llama, "--dataset", data)
    with monkeypatch.context() as patch:
        interrupting(patch, after=3)
        stopped = ss(*command)
    assert stopped.code == 130
    assert "Traceback" not in stopped.err
    assert "the same command resumes" in stopped.err
    shards = list((tmp_path / "home").rglob("shard-*.safetensors"))
    assert 0 < len(shards) < 3
    assert not [p for p in (tmp_path / "home").rglob(".*") if p.is_dir()]  # nothing half-written
    finished = ss(*command)
    assert finished.code == 0
    assert f"captured {3 - len(shards)} of 3 shards" in finished.err


RUN_INTERRUPTIBLY = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
from ss_lens.cli.main import main
main()
"""


def test_ctrl_c_in_the_main_job_exits_with_130_and_the_same_command_completes(
    ss: CommandLine, main_job: tuple[object, ...], tmp_path: Path
) -> None:
    command = [*map(str, main_job), "--dev", "1", "--test", "9", "--max-new-tokens", "40"]
    command += ["--angles", ",".join(map(str, range(0, 360, 12)))]
    answers = tmp_path / "run" / "answers"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_INTERRUPTIBLY, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300  # importing alone takes a minute on a busy machine
    while not list(answers.rglob("*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err[-500:]
    assert "Traceback" not in err
    assert "interrupted; finished work is kept" in err
    assert not (tmp_path / "run" / "scores.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in answers.rglob("*.parquet")}
    finished = ss(*command, "--json")
    assert finished.code == 0, finished.err
    own = [row for row in finished.json["dial"] if row["way"] == "rotate_by"]
    assert len({row["angle_deg"] for row in own}) == 30
    assert len(list(answers.rglob("*.parquet"))) > len(kept)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


SMALL = ("--dev", "2", "--test", "3", "--max-new-tokens", "5")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("generate", "w9", "--max-new-tokens", "5"), "interrupted; nothing is kept."),
        (("steer", "w9", "--angle", "90"), "kept in the store, no answer was."),
        (("calibrate", "--out", "c"), "kept in the store, no calibration was saved."),
        (("capture",), "kept in the store, the same command resumes."),
        (("run", *SMALL), "finished work is kept, the same command resumes."),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_each_verb_says_truly_what_an_interrupt_leaves(
    ss: CommandLine,
    llama: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupting(monkeypatch, after=1)
    dataset = () if arguments[0] == "generate" else ("--dataset", data)
    stopped = ss(*arguments, "--model", llama, *dataset)
    assert stopped.code == 130
    assert stopped.err.strip().splitlines()[-1].endswith(told)
    assert not (tmp_path / "c").exists()


def test_an_interrupted_listing_promises_nothing(
    ss: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "print_rows", interrupted)
    stopped = ss("datasets")
    assert (stopped.code, stopped.err) == (130, "interrupted; nothing was changed.\n")
