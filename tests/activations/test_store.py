"""The store: nothing is captured twice, nothing is half-written, damage is noticed."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Activations, ContrastiveDataset, Store, UserError
from ss_lens.activations import store as store_module
from ss_lens.activations.manifest import Manifest
from tests.activations.stores import capture_module, contents, forward_passes, same, whole

WORKER = """
import importlib, logging, os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import ss_lens
logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.getLogger().setLevel(logging.WARNING)
logging.getLogger("ss_lens").setLevel(logging.INFO)
model_folder, root, barrier, prompts = sys.argv[1:]
positive, negative = (tuple(side.split(",")) for side in prompts.split(";"))
importlib.import_module("ss_lens.activations.capture").SHARD_SIZE = 4
model = ss_lens.load_model(model_folder)
data = ss_lens.ContrastiveDataset("tiny", positive, negative)
embedding = model.original_model.get_input_embeddings()
"""


pytestmark = pytest.mark.usefixtures("small_shards")


def start_worker(
    script: str, model: Path, store: Store, data: ContrastiveDataset, barrier: Path
) -> subprocess.Popen[str]:
    code = WORKER + textwrap.dedent(script)
    prompts = ";".join(",".join(side) for side in (data.positive, data.negative))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(model), str(store.root), str(barrier), prompts],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )


def test_a_second_capture_never_calls_the_model(
    ask: Callable[[], Activations], tiny_llama: TransformerBridge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ss_lens")
    first = ask()
    with forward_passes(tiny_llama) as calls:
        second = ask()
    assert calls == []
    assert same(first, second)
    messages = [r.getMessage() for r in caplog.records if r.name == "ss_lens.activations.store"]
    assert messages[0].startswith("captured 6 of 6 shards")
    assert messages[1].startswith("served from the store, nothing captured")


@pytest.mark.parametrize(
    "change", ["prompt", "order", "streams", "position", "layers", "weights", "dtype"]
)
def test_whatever_changes_the_activations_changes_the_key(
    change: str, tiny_folders: dict[str, Path], tiny_data: ContrastiveDataset, store: Store
) -> None:
    model = ss_lens.load_model(
        tiny_folders["llama"], dtype="bfloat16" if change == "dtype" else "float32"
    )
    data = tiny_data.head(2)
    before = None if change == "dtype" else ss_lens.capture(model, data, store=store)
    if before is None:
        original = ss_lens.load_model(tiny_folders["llama"])
        before = ss_lens.capture(original, data, store=store)
    if change == "prompt":
        data = ContrastiveDataset(data.name, (*data.positive[:1], "w8 w8"), data.negative)
    if change == "order":
        data = ContrastiveDataset(data.name, data.positive[::-1], data.negative)
    if change == "weights":
        model.original_model.model.layers[2].mlp.down_proj.weight.mul_(1.5)
    options = {
        "streams": {"streams": ("ln1_out",)},
        "position": {"position": -2},
        "layers": {"layers": [0, 1]},
    }.get(change, {})
    after = ss_lens.capture(model, data, store=store, **options)
    assert after.spec.key != before.spec.key
    assert after.positive.shape != before.positive.shape or not same(after, before)


def test_the_name_of_a_dataset_and_of_a_folder_do_not_change_the_key(
    ask: Callable[[], Activations],
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    store: Store,
) -> None:
    (tmp_path / "elsewhere").symlink_to(tiny_folders["llama"])
    model = ss_lens.load_model(tmp_path / "elsewhere")
    first = ask()
    data = ContrastiveDataset("another name", tiny_data.positive, tiny_data.negative)
    with forward_passes(model) as calls:
        second = ss_lens.capture(model, data, store=store)
    assert calls == []
    assert second.spec.key == first.spec.key


def test_activations_are_paired_as_they_were_asked_for_whoever_captured_them_first(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    partners = replace(tiny_data, paired=True)
    first = ss_lens.capture(tiny_llama, tiny_data, store=store)
    with forward_passes(tiny_llama) as calls:
        second = ss_lens.capture(tiny_llama, partners, store=store)
        third = ss_lens.capture(tiny_llama, tiny_data, store=store)
    assert calls == []
    assert [acts.spec.paired for acts in (first, second, third)] == [False, True, False]
    assert first.spec.key == second.spec.key
    assert second.restricted_to(("ln1_out",)).spec.paired


def test_two_processes_that_ask_at_once_capture_once(
    ask: Callable[[], Activations],
    tiny_folders: dict[str, Path],
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker begins, this process asks while it is at its second shard."""
    script = """
        calls = []
        def dawdle(module, args):
            calls.append(args[0].shape[0])
            if len(calls) == 3:
                Path(barrier).touch()
                time.sleep(1)
        embedding.register_forward_pre_hook(dawdle)
        acts = ss_lens.capture(model, data, store=ss_lens.Store(root))
        print(calls, hash(tuple(acts.positive.flatten().tolist())))
    """
    barrier = tmp_path / "barrier"
    worker = start_worker(script, tiny_folders["llama"], store, tiny_data, barrier)
    while not barrier.exists() and worker.poll() is None:
        time.sleep(0.01)
    caplog.set_level(logging.INFO, "ss_lens")
    with forward_passes(tiny_llama) as calls:
        acts = ask()
    printed, log = worker.communicate(timeout=120)
    assert worker.returncode == 0, log
    assert calls == []
    assert printed == f"[1, 4, 4, 4, 4, 4, 4] {hash(tuple(acts.positive.flatten().tolist()))}\n"
    assert "another process is capturing the same activations; waiting for it" in caplog.text
    (folder,) = store.root.iterdir()
    assert contents(folder) == whole()


def test_a_process_killed_while_it_writes_a_shard_leaves_no_trace_once_resumed(
    tiny_folders: dict[str, Path],
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    tmp_path: Path,
) -> None:
    script = """
        write = Path.write_bytes
        def write_half(path, data):
            if "shard-00003" in str(path):
                write(path, data[: len(data) // 2])
                os.kill(os.getpid(), 9)
            return write(path, data)
        Path.write_bytes = write_half
        ss_lens.capture(model, data, store=ss_lens.Store(root))
    """
    worker = start_worker(script, tiny_folders["llama"], store, tiny_data, tmp_path)
    _, log = worker.communicate(timeout=120)
    assert worker.returncode == -signal.SIGKILL, log
    (folder,) = store.root.iterdir()
    assert {name for name in contents(folder) if not name.startswith(".")} == whole(3)
    assert store.verify(folder.name) == [f"shard-0000{i}.safetensors is missing" for i in (3, 4, 5)]
    with forward_passes(tiny_llama) as calls:
        resumed = ss_lens.capture(tiny_llama, tiny_data, store=store)
    assert calls == [1, 4, 4, 4]  # the prefix, and the three missing shards
    fresh = ss_lens.capture(tiny_llama, tiny_data, store=Store(tmp_path / "fresh"))
    assert same(resumed, fresh)
    assert contents(folder) == whole()


def test_ctrl_c_keeps_the_finished_shards_and_the_next_capture_runs_only_the_others(
    ask: Callable[[], Activations],
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt), forward_passes(tiny_llama, stop_at=3):
        ask()
    (folder,) = store.root.iterdir()
    assert contents(folder) == whole(2)
    with forward_passes(tiny_llama) as calls:
        resumed = ask()
    assert calls == [1, 4, 4, 4, 4]
    fresh = ss_lens.capture(tiny_llama, tiny_data, store=Store(tmp_path / "fresh"))
    assert same(resumed, fresh)
    assert contents(folder) == whole()


def test_an_interrupted_capture_resumes_by_its_own_plan_when_the_shard_size_has_changed(
    ask: Callable[[], Activations],
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(KeyboardInterrupt), forward_passes(tiny_llama, stop_at=3):
        ask()
    monkeypatch.setattr(capture_module, "SHARD_SIZE", 7)
    resumed = ask()
    fresh = ss_lens.capture(tiny_llama, tiny_data, store=Store(tmp_path / "fresh"))
    torch.testing.assert_close(resumed.positive, fresh.positive, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resumed.negative, fresh.negative, rtol=1e-4, atol=1e-5)


def test_activations_load_by_their_key_without_a_model(
    ask: Callable[[], Activations], store: Store
) -> None:
    acts = ask()
    loaded = store.load(acts.spec.key)
    assert same(loaded, acts)
    assert loaded.spec == acts.spec


def test_entries_resolve_verify_and_remove(
    ask: Callable[[], Activations],
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    assert store.entries() == []
    first = ask()
    second = ss_lens.capture(tiny_llama, tiny_data.head(3), store=store)
    entries = {entry.key: entry for entry in store.entries()}
    assert set(entries) == {first.spec.key, second.spec.key}
    entry = entries[first.spec.key]
    assert (entry.shards_present, entry.shards_total, entry.spec) == (6, 6, first.spec)
    assert entry.n_bytes > 24 * len(first.sites) * 32 * 4
    assert store.resolve(first.spec.key[:12]) == first.spec.key
    with pytest.raises(UserError, match=r"2 sets in .* start with ''; expected exactly one"):
        store.resolve("")
    with pytest.raises(UserError, match=r"0 sets in .* start with 'xyz'"):
        store.resolve("xyz")
    (store.root / first.spec.key / "shard-00005.safetensors").unlink()
    assert store.verify(first.spec.key) == ["shard-00005.safetensors is missing"]
    store.remove(first.spec.key)
    assert [entry.key for entry in store.entries()] == [second.spec.key]
    assert same(store.load(second.spec.key), second)


def test_an_unknown_key_can_be_neither_removed_nor_verified(store: Store) -> None:
    with pytest.raises(UserError):
        store.verify("0" * 64)
    with pytest.raises(UserError):
        store.remove("0" * 64)


def test_a_full_disk_names_the_remedy_and_keeps_what_is_finished(
    ask: Callable[[], Activations],
    tiny_llama: TransformerBridge,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Path.write_bytes

    def fill_up(path: Path, data: bytes) -> int:
        if "shard-00002" in str(path):
            write(path, b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(UserError, match=r"no space left under .*finished is kept.*SS_LENS_HOME"):
        ask()
    (folder,) = store.root.iterdir()
    assert contents(folder) == whole(2)
    monkeypatch.setattr(Path, "write_bytes", write)
    with forward_passes(tiny_llama) as calls:
        ask()
    assert calls == [1, 4, 4, 4, 4]


def test_a_place_that_cannot_be_made_names_the_remedy(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"/sealed.* cannot be written \(Permission denied\)"):
        ss_lens.capture(tiny_llama, tiny_data, store=Store("/sealed/store"))


def test_the_store_is_under_ss_lens_home(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data.head(1))
    assert same(Store(tmp_path / "home" / "store").load(acts.spec.key), acts)


def test_a_waiting_reader_gets_the_whole_set(
    ask: Callable[[], Activations], store: Store, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A lock held by someone who captures what is missing delays a load; it does not fail it."""
    acts = ask()
    caplog.set_level(logging.INFO, "ss_lens")
    held = threading.Event()
    shard = store.root / acts.spec.key / "shard-00002.safetensors"
    shard.rename(tmp_path / "shard")

    def hold() -> None:
        with FileLock(store.root / acts.spec.key / ".lock"):
            held.set()
            time.sleep(0.3)
            (tmp_path / "shard").rename(shard)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    started = time.monotonic()
    assert same(store.load(acts.spec.key), acts)
    assert time.monotonic() - started >= 0.25
    assert "another process is capturing the same activations" in caplog.text
    holder.join()


def test_a_whole_set_is_read_without_waiting_for_a_lock(
    ask: Callable[[], Activations], tiny_llama: TransformerBridge, store: Store
) -> None:
    acts = ask()
    with FileLock(store.root / acts.spec.key / ".lock"), forward_passes(tiny_llama) as calls:
        assert same(store.load(acts.spec.key), acts)
        assert same(ask(), acts)
    assert calls == []


def test_a_store_that_cannot_be_written_serves_what_it_holds(
    ask: Callable[[], Activations],
    tiny_llama: TransformerBridge,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acts = ask()
    folder = store.root / acts.spec.key
    (folder / ".lock").unlink(missing_ok=True)
    opened = os.open

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def read_only(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            refuse()
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "mkdir", refuse)
    with forward_passes(tiny_llama) as calls:
        assert same(ask(), acts)
    assert same(store.load(acts.spec.key), acts)
    assert [entry.key for entry in store.entries()] == [acts.spec.key]
    assert store.verify(acts.spec.key) == []
    assert calls == []
    assert {p.name for p in folder.iterdir()} == whole()
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        store.load(acts.spec.key)
    with pytest.raises(UserError, match="cannot be written"):
        ask()


def test_a_folder_that_is_removed_while_its_lock_makes_it_is_made_again(
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acquire, tried = store_module._acquire, list[str]()

    def removed_once(lock: FileLock) -> None:
        tried.append(lock.lock_file)
        if len(tried) == 1:
            raise FileExistsError(17, "File exists", str(Path(lock.lock_file).parent))
        acquire(lock)

    monkeypatch.setattr(store_module, "_acquire", removed_once)
    acts = ss_lens.capture(tiny_llama, tiny_data.head(3), store=store)
    assert store.stored_keys() == [acts.spec.key]
    assert len(tried) > 1


def test_a_set_may_be_removed_while_others_wait_to_capture_it(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data.head(3), store=store)
    manifest = Manifest.read(store.root / acts.spec.key)
    rows = torch.cat((acts.positive, acts.negative))
    failures: list[str] = []

    def attempt(what: Callable[[], object]) -> None:
        try:
            what()
        except BaseException as error:
            failures.append(str(error))

    def recapture() -> None:
        found = store.fetch(acts.spec, manifest.plan, lambda indices: rows[list(indices)])
        assert same(found, acts)

    for _ in range(15):
        recapture()
        (store.root / acts.spec.key / "shard-00000.safetensors").unlink()
        tasks = [recapture, lambda: store.remove(acts.spec.key)] * 3
        with FileLock(store.root / acts.spec.key / ".lock"):
            threads = [threading.Thread(target=attempt, args=(task,)) for task in tasks]
            for thread in threads:
                thread.start()
            time.sleep(0.01)
        for thread in threads:
            thread.join()
    # A second removal finds that there is nothing left.
    assert [line for line in failures if "has no activations" not in line] == []
    recapture()
    assert {path.name for path in store.root.iterdir()} == {acts.spec.key}
