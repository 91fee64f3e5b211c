"""Local folders with weights in several files: whole they load, incomplete they are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import ss_lens
from ss_lens import UserError
from ss_lens.core import resources
from ss_lens.models.integrity import stored_numbers
from ss_lens.models.loading.fingerprint import identify

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    """The tiny llama in several files, as transformers writes it."""
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_folders["llama"]).save_pretrained(
        folder, max_shard_size="30KB"
    )
    AutoTokenizer.from_pretrained(tiny_folders["llama"]).save_pretrained(folder)
    assert len(shards(folder)) > 2
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_a_model_in_several_files_is_the_same_model(
    sharded: Path, tiny_folders: dict[str, Path]
) -> None:
    one, several = (ss_lens.load_model(folder) for folder in (tiny_folders["llama"], sharded))
    assert identify(several).fingerprint == identify(one).fingerprint
    assert stored_numbers(sharded) == stored_numbers(tiny_folders["llama"])


def drop_tensor(folder: Path) -> None:
    path = shards(folder)[1]
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path, {"format": "pt"})


def foreign_tensor(folder: Path) -> None:
    path = shards(folder)[1]
    save_file({**load_file(path), "model.extra.weight": torch.ones(3)}, path, {"format": "pt"})


def another_shape(folder: Path) -> None:
    path = shards(folder)[1]
    save_file({key: torch.ones(3, 3) for key in load_file(path)}, path, {"format": "pt"})


def not_a_number(folder: Path) -> None:
    path = shards(folder)[-1]
    tensors = load_file(path)
    tensors[min(tensors)].fill_(float("nan"))
    save_file(tensors, path, {"format": "pt"})


def forget_in_the_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    last = shards(folder)[-1].name
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != last}
    (folder / INDEX).write_text(json.dumps(index))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file missing": (lambda f: shards(f)[1].unlink(), "could not be loaded"),
    "a file cut off": (
        lambda f: shards(f)[1].write_bytes(shards(f)[1].read_bytes()[:-9]), "could not be loaded",
    ),
    "an empty file": (lambda f: shards(f)[1].write_bytes(b""), "could not be loaded"),
    "a tensor missing": (drop_tensor, r"lacks 'model\..*', which would be random"),
    "a foreign tensor": (foreign_tensor, "has 'model.extra.weight', for which"),
    "another shape": (another_shape, "could not be loaded|in another shape"),
    "NaN": (not_a_number, "holds NaN or infinity in float32"),
    "an index without a file": (forget_in_the_index, "lacks '"),
    "no index": (lambda f: (f / INDEX).unlink(), "could not be loaded"),
    "a damaged index": (lambda f: (f / INDEX).write_text("{"), "could not be loaded"),
    "an index of another kind": (lambda f: (f / INDEX).write_text("[]"), "could not be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_files_that_are_not_whole_are_one_clear_line(
    case: str, sharded: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGE[case]
    damage(sharded)
    with pytest.raises(UserError, match=message) as caught:
        ss_lens.load_model(sharded)
    assert "\n" not in str(caught.value)
    assert str(sharded) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_too_little_memory_for_all_the_files_is_told_before_they_are_read(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_available", lambda: 1000)
    with pytest.raises(UserError, match=r"needs 0 MB of memory.*load it in bfloat16"):
        ss_lens.load_model(sharded)
