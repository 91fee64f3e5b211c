"""Sweeps in several processes, killed, beside one another and through submitit: one table."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from ss_lens import Store, UserError
from ss_lens.experiments import cluster, worker
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.cluster import reported
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.inputs import settled
from ss_lens.experiments.sweeps.result import load_sweep
from ss_lens.experiments.sweeps.run import run_sweep
from ss_lens.experiments.worker import Outcome
from tests.experiments.sweeping import Asked, batches, with_grid

ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import json, logging, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ss_lens import Store, UserError
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.sweeps.run import run_sweep
import ss_lens.models.load, ss_lens.activations.capture
handler = logging.StreamHandler(open(sys.argv[1], "a"))
logging.getLogger("ss_lens").addHandler(handler)
logging.getLogger("ss_lens").setLevel(logging.DEBUG)
print("ready", flush=True)
for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child == 0:
        result = run_sweep(
            SweepConfig(**call["config"]), call["folder"], store=Store(call["store"])
        )
        result.table.to_parquet(call["out"])
        os._exit(0)
    print(child, flush=True)
    if call["wait"]:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """A process that has loaded the package and runs each sweep in a process of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, config: SweepConfig, folder: Path, out: Path, *, wait: bool) -> int:
        call = {
            "config": config.model_dump(mode="json"),
            "folder": str(folder),
            "store": str(folder.parent / "store"),
            "out": str(out),
            "wait": wait,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        return int(self.line())

    def started(self) -> list[str]:
        """The batches that were begun, a line each."""
        return [line for line in self.log.read_text().splitlines() if line.endswith(" angles")]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server") / "log")
    yield running
    running.process.kill()
    running.process.wait()
    for pipe in (running.process.stdin, running.process.stdout):
        assert pipe is not None
        pipe.close()


@pytest.fixture
def server(serving: Server) -> Server:
    serving.log.write_text("")
    return serving


def assert_every_cell_once(folder: Path, config: SweepConfig) -> None:
    for home in (folder / "cells").iterdir():
        for score in ("refusal_score", "answers", "perplexity", "kl"):
            tables = [pd.read_parquet(path) for path in home.glob(f"{score}-*.parquet")]
            if tables:
                rows = pd.concat(tables)
                unsteered = "prompt_index" not in rows  # the answers that all arms share
                assert len(tables) == 1 if unsteered else True
                assert unsteered or not rows.duplicated(["prompt_index", "angle_deg"]).any()
    assert not [*(folder / "cells").glob("*/.*.parquet.*")]


def test_a_sweep_killed_five_times_repeats_no_cell_and_ends_with_the_identical_table(
    asked: Asked, tmp_path: Path, server: Server
) -> None:
    config = with_grid(asked, selection=["uniform", "Half(which='first')"], angles_deg=[0, 90, 200])
    begun = time.monotonic()
    whole = run_sweep(config, tmp_path / "whole", store=Store(tmp_path / "whole store"))
    duration = time.monotonic() - begun
    folder, out = tmp_path / "killed" / "sweep", tmp_path / "out.parquet"
    generator, kept = random.Random(), [dict[str, tuple[int, int]]()]
    for _ in range(5):
        child = server.start(config, folder, out, wait=False)
        time.sleep(generator.uniform(0, 0.8) * duration)
        os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
        kept.append(batches(folder))
    assert server.start(config, folder, out, wait=True)
    assert server.line() == "0"
    final = batches(folder)
    for snapshot in kept:
        assert snapshot.items() <= final.items()
    pd.testing.assert_frame_equal(pd.read_parquet(out), whole.table, check_exact=True)
    pd.testing.assert_frame_equal(load_sweep(folder).table, whole.table, check_exact=True)
    assert_every_cell_once(folder, config)
    assert 16 <= len(server.started()) <= 16 + 5


def test_two_sweeps_on_one_folder_share_the_cells_and_both_end_with_the_right_table(
    asked: Asked, tmp_path: Path, server: Server
) -> None:
    config = with_grid(asked, selection=["uniform", "Half(which='first')"])
    whole = run_sweep(config, tmp_path / "whole", store=Store(tmp_path / "whole store"))
    folder = tmp_path / "shared" / "sweep"
    outs = [tmp_path / "out 0.parquet", tmp_path / "out 1.parquet"]
    server.start(config, folder, outs[0], wait=False)
    server.start(config, folder, outs[1], wait=True)
    assert server.line() == "0"
    for _ in range(100):
        if outs[0].exists():
            break
        time.sleep(0.1)
    time.sleep(0.1)
    for out in outs:
        pd.testing.assert_frame_equal(pd.read_parquet(out), whole.table, check_exact=True)
    assert_every_cell_once(folder, config)
    assert len(server.started()) == 16


def test_workers_of_submitit_give_the_same_table(asked: Asked, tmp_path: Path) -> None:
    here = run_sweep(SweepConfig(**asked), tmp_path / "here")
    config = SweepConfig(**{**asked, "cluster": "local", "workers": 2})
    there = run_sweep(config, tmp_path / "there")
    pd.testing.assert_frame_equal(there.table, here.table, check_exact=True)
    assert there.groups["key"].tolist() == here.groups["key"].tolist()
    assert not [*(tmp_path / "there" / "logs").glob("reports-*")]


def test_all_workers_compute_in_the_precision_that_the_first_process_decided(
    asked: Asked, tmp_path: Path
) -> None:
    """Whatever their own machines would take; that is told in their logs."""
    folder, asked = tmp_path / "there", {**asked, "scores": ["refusal_score"]}
    assert CellStore.claim(folder).dtype("auto", "bfloat16") == "bfloat16"
    config = SweepConfig(**{**asked, "device": "cpu", "cluster": "local", "workers": 2})
    there = run_sweep(config, folder)
    half = run_sweep(SweepConfig(**{**asked, "dtype": "bfloat16"}), tmp_path / "half")
    assert there.groups["key"].tolist() == half.groups["key"].tolist()
    pd.testing.assert_frame_equal(there.table, half.table)
    logs = [path.read_text() for path in (folder / "logs").rglob("*.err")]
    told = "dtype auto is float32 on this machine; it computes in bfloat16 all the same"
    assert sum(told in log for log in logs) == len(logs) == 2


def test_what_a_dtype_means_in_a_folder_is_decided_once(asked: Asked, tmp_path: Path) -> None:
    cells = CellStore.claim(tmp_path)
    assert cells.dtype("fast", "float32") == "float32"
    assert CellStore.claim(tmp_path).dtype("fast", "bfloat16") == "float32"
    assert cells.dtype("auto", "bfloat16") == "bfloat16"  # another name, decided by itself
    for name, meant in {"fast": "float32", "auto": "bfloat16", "float16": "float16"}.items():
        config = SweepConfig(**{**asked, "dtype": name, "device": "cpu"})
        assert settled(config, cells) == config.model_copy(update={"dtype": meant})
    kept = json.loads((tmp_path / "sweep.json").read_text())["dtypes"]
    assert kept == {"fast": "float32", "auto": "bfloat16"}  # what is named needs no decision


class DeadJob:
    def exception(self) -> Exception:
        return RuntimeError("out of memory\nat step 3")


def test_one_worker_that_lives_to_the_end_suffices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = Outcome(key="k", steered_sites=("L0.ln1_out",))
    report = {"outcomes": [outcome.as_json()]}
    (tmp_path / "report-0.json").write_text(json.dumps({"error": "a full disk"}))
    (tmp_path / "report-1.json").write_text(json.dumps(report))
    assert reported([DeadJob(), DeadJob(), DeadJob()], tmp_path) == [outcome]
    assert "2 of 3 workers ended early" in caplog.text
    (tmp_path / "report-1.json").unlink()
    with pytest.raises(UserError, match="a full disk"):
        reported([DeadJob(), DeadJob()], tmp_path)
    (tmp_path / "report-0.json").unlink()
    with pytest.raises(UserError, match=r"all 2 workers ended early \(out of memory\).*are kept"):
        reported([DeadJob(), DeadJob()], tmp_path)


def test_what_a_worker_objects_to_is_told_as_it_is(asked: Asked, tmp_path: Path) -> None:
    config = SweepConfig(
        **{**asked, "cluster": "local", "max_new_tokens": 300, "scores": "answers"}
    )
    with pytest.raises(UserError, match=r"and 300 new ones; the context of .* is 256"):
        run_sweep(config, tmp_path)


def test_parameters_that_submitit_does_not_know_are_an_error(asked: Asked, tmp_path: Path) -> None:
    config = SweepConfig(**{**asked, "cluster": "local", "cluster_parameters": {"slurm_foo": 1}})
    with pytest.raises(UserError, match=r"submitit refuses cluster: local .*slurm_foo.*'foo'"):
        run_sweep(config, tmp_path)


def test_a_missing_submitit_names_the_command_that_installs_it(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    config = SweepConfig(**{**asked, "cluster": "slurm"})
    with pytest.raises(UserError, match=r'pip install "ss_lens\[cluster\]"'):
        run_sweep(config, tmp_path)


class FinishedJob:
    def exception(self) -> None:
        return None


def test_reports_that_a_network_file_system_shows_late_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looked like workers that had all ended early."""
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    outcome, reports = Outcome(key="k"), tmp_path / "reports"
    text = json.dumps({"outcomes": [outcome.as_json()]})

    def appear() -> None:
        reports.mkdir()
        (reports / "new").write_text(text)
        (reports / "new").rename(reports / "report-0.json")

    timer = threading.Timer(0.3, appear)
    timer.start()
    assert reported([DeadJob(), FinishedJob()], reports) == [outcome]
    timer.join()
    monkeypatch.setattr(cluster, "VISIBLE_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"1 of 2 workers finished, but their reports are not vis"):
        reported([DeadJob(), FinishedJob()], tmp_path / "nowhere")


def test_a_worker_waits_for_a_folder_that_appears_late(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(worker, "finish_groups", lambda *given, **more: [Outcome(key="k")])
    config = SweepConfig(**{**asked, "cluster": "slurm"})
    folder, reports = tmp_path / "sweep", tmp_path / "sweep" / "logs" / "reports"
    call = {
        "config": config.model_dump(mode="json"),
        "groups": [],
        "folder": str(folder),
        "store": str(tmp_path / "store"),
        "reports": str(reports),
        "first": 0,
    }

    def appear() -> None:
        CellStore.claim(folder)
        reports.mkdir(parents=True)

    timer = threading.Timer(0.3, appear)
    timer.start()
    cluster.work(json.dumps(call))
    timer.join()
    assert len([*reports.glob("report-0-*.json")]) == 1
    monkeypatch.setattr(cluster, "VISIBLE_SECONDS", 0.05)
    with pytest.raises(UserError, match="must be on a file system that all workers share"):
        cluster.work(json.dumps({**call, "reports": str(tmp_path / "nowhere")}))


@pytest.mark.slow
def test_a_worker_that_starts_after_its_sweep_was_killed_ends_at_once(
    asked: Asked, tmp_path: Path
) -> None:
    """The next sweep clears the reports away, and nobody will make them again."""
    config = SweepConfig(**{**asked, "cluster": "local", "workers": 2})
    CellStore.claim(tmp_path / "sweep")
    call = {
        "config": config.model_dump(mode="json"),
        "groups": [],
        "folder": str(tmp_path / "sweep"),
        "store": str(tmp_path / "store"),
        "reports": str(tmp_path / "sweep" / "logs" / "reports-of-the-killed"),
        "first": 0,
    }
    code = (
        "import sys; from ss_lens.experiments.cluster import work; print('ready', flush=True);"
        "work(sys.argv[1])"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(call)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().strip() == b"ready"
        try:
            assert worker.wait(timeout=20) == 1
        finally:
            worker.kill()


SWEEPING = """
import sys, torch
torch.set_num_threads(1)
from ss_lens import Store
from ss_lens.experiments.config import load_sweep_config
from ss_lens.experiments.sweeps.run import run_sweep
run_sweep(load_sweep_config(sys.argv[1]), sys.argv[2], store=Store(sys.argv[3]))
"""


def running(marker: str) -> set[int]:
    """The processes whose command line holds ``marker``, without those that have ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode(errors="replace")
            ended = (path / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            continue
        if marker in command and not ended:
            found.add(int(path.name))
    return found


def within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_sweep_that_is_killed(
    asked: Asked, tmp_path: Path, how: signal.Signals
) -> None:
    """The sweep stays a zombie meanwhile: nobody asks for it until its workers are gone."""
    many = {**asked["grid"], "angles_deg": {"step": 0.25}}
    config = {**asked, "grid": many, "cluster": "local", "workers": 2, "max_new_tokens": 60}
    path, folder = tmp_path / "sweep.yaml", tmp_path / "sweep"
    path.write_text(json.dumps(config))
    sweep = subprocess.Popen(
        [sys.executable, "-c", SWEEPING, str(path), str(folder), str(tmp_path / "store")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    logs = folder / "logs"
    try:
        assert within(240, lambda: any((folder / "cells").glob("*/.lock")))
        assert running(str(logs))
        sweep.send_signal(how)
        assert within(60, lambda: not running(str(logs)))
    finally:
        sweep.kill()
        sweep.wait()
    assert [*logs.glob("reports-*")]  # left by the killed sweep, and removed by the next one
    cluster._remove_reports_of_the_killed(logs)
    assert not [*logs.glob("reports-*")]
