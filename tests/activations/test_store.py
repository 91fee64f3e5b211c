"""The store: nothing is captured twice, nothing is half-written, damage is noticed."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Activations, ContrastiveDataset, Store, UserError

capture_module = importlib.import_module("ss_lens.activations.capture")
N_SHARDS = 6

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


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "SHARD_SIZE", 4)


@pytest.fixture
def ask(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> Callable[[], Activations]:
    return lambda: ss_lens.capture(tiny_llama, tiny_data, store=store)


@contextmanager
def forward_passes(model: TransformerBridge, stop_at: int | None = None) -> Iterator[list[int]]:
    """Rows of each forward pass; Ctrl-C arrives in pass ``stop_at``, counted from 0."""
    seen: list[int] = []

    def count(module: torch.nn.Module, args: tuple) -> None:
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        seen.append(args[0].shape[0])

    handle = model.original_model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def contents(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {".lock"}


def whole(n_shards: int = N_SHARDS) -> set[str]:
    return {"manifest.json", *(f"shard-{i:05d}.safetensors" for i in range(n_shards))}


def same(a: Activations, b: Activations) -> bool:
    return torch.equal(a.positive, b.positive) and torch.equal(a.negative, b.negative)


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


def test_a_manifest_from_before_pairs_were_marked_is_read_as_unpaired(
    ask: Callable[[], Activations], store: Store
) -> None:
    first = ask()
    manifest = store.root / first.spec.key / "manifest.json"
    fields = json.loads(manifest.read_text())
    del fields["spec"]["paired"]
    manifest.write_text(json.dumps(fields))
    assert store.load(first.spec.key).spec == first.spec


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


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 0x10
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_byte,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_noticed_and_captured_again(
    damage: str, ask: Callable[[], Activations], tiny_llama: TransformerBridge, store: Store
) -> None:
    first = ask()
    key = first.spec.key
    DAMAGES[damage](store.root / key / "shard-00002.safetensors")
    assert store.verify(key) == ["shard-00002.safetensors is damaged"]
    with (
        pytest.warns(UserWarning, match=r"shard-00002\.safetensors .* is captured again"),
        forward_passes(tiny_llama) as calls,
    ):
        again = ask()
    assert calls == [1, 4]
    assert same(first, again)
    assert store.verify(key) == []


def test_activations_load_by_their_key_without_a_model(
    ask: Callable[[], Activations], store: Store
) -> None:
    acts = ask()
    loaded = store.load(acts.spec.key)
    assert same(loaded, acts)
    assert loaded.spec == acts.spec


def test_loading_what_is_absent_incomplete_or_damaged_is_an_error_that_names_the_remedy(
    ask: Callable[[], Activations], store: Store
) -> None:
    with pytest.raises(UserError, match=r"no activations '00000000.*run `ss-lens capture`"):
        store.load("0" * 64)
    key = ask().spec.key
    shard = store.root / key / "shard-00001.safetensors"
    shard.unlink()
    with pytest.raises(UserError, match="missing or damaged; run the command that captured"):
        store.load(key)
    shard.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="missing or damaged; run the command that captured"):
        store.load(key)


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


def test_another_format_of_the_manifest_names_the_command_that_removes_it(
    ask: Callable[[], Activations], store: Store
) -> None:
    key = ask().spec.key
    manifest = store.root / key / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    message = f"store format 99, this version reads 1; remove it with `ss-lens store rm {key[:12]}`"
    for action in (ask, lambda: store.load(key)):
        with pytest.raises(UserError, match=message):
            action()
    assert store.resolve(key[:12]) == key  # so that the advice can be followed
    store.remove(key)
    assert not (store.root / key).exists()


def test_a_damaged_manifest_is_an_error_that_names_it(
    ask: Callable[[], Activations], store: Store
) -> None:
    key = ask().spec.key
    (store.root / key / "manifest.json").write_text('{"format": 1,')
    with pytest.raises(UserError, match=r"manifest of the store at .*manifest\.json is damaged"):
        store.load(key)


def test_the_store_is_under_ss_lens_home(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data.head(1))
    assert same(Store(tmp_path / "home" / "store").load(acts.spec.key), acts)


def test_a_waiting_reader_gets_the_whole_set(
    ask: Callable[[], Activations], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock held by someone else delays a load; it does not fail it."""
    acts = ask()
    caplog.set_level(logging.INFO, "ss_lens")
    held = threading.Event()

    def hold() -> None:
        with FileLock(store.root / acts.spec.key / ".lock"):
            held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    started = time.monotonic()
    assert same(store.load(acts.spec.key), acts)
    assert time.monotonic() - started >= 0.25
    assert "another process is capturing the same activations" in caplog.text
    holder.join()
