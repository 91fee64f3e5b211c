"""What is exported names no folder of the machine that it was made on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import ss_lens
from ss_lens import RotateBy, UserError
from ss_lens.exports.linear_map import Kind
from tests.exports.conftest import PROMPTS, Readied, Ready, kept_as_gguf, snapshot
from tests.exports.test_folders import FILES, exported
from tests.fitting import fitted_on

Told = Callable[[Path], list[str]]


@pytest.fixture
def private(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The files below a folder that hold the path of a folder of this machine."""
    folders = [tmp_path_factory.getbasetemp(), Path.home(), Path.cwd()]
    secrets = [str(folder).encode() for folder in folders if len(folder.parts) > 1]

    def told(folder: Path) -> list[str]:
        return holders(snapshot(folder).items(), secrets)

    return told


def holders(files: Iterable[tuple[str, bytes]], secrets: list[bytes]) -> list[str]:
    return [name for name, content in files if any(secret in content for secret in secrets)]


@pytest.mark.parametrize("kind", FILES)
def test_no_file_of_an_export_holds_a_path(
    kind: Kind, llama: Ready, tmp_path: Path, private: Told
) -> None:
    exported(llama, tmp_path / "out", kind)
    assert private(tmp_path / "out") == []


def test_neither_does_a_gguf_file(
    ready: Readied, tiny_data: ss_lens.ContrastiveDataset, tmp_path: Path, private: Told
) -> None:
    model = kept_as_gguf(ready("qwen2").folder, "qwen2", tmp_path / "kept")
    made = fitted_on(model, tiny_data, ss_lens.Store(tmp_path / "store"))
    ss_lens.export(
        made, model, RotateBy(20), kind="merged", out=tmp_path / "out", gguf="q8_0",
        prompts=PROMPTS, max_new_tokens=1,
    )  # fmt: skip
    assert (tmp_path / "out" / "model.gguf").is_file()
    assert private(tmp_path / "out") == []


def test_a_path_that_is_there_is_found(private: Told, tmp_path: Path) -> None:
    """The check itself."""
    (tmp_path / "told.json").write_text(json.dumps({"name": str(tmp_path)}))
    (tmp_path / "none.json").write_text(json.dumps({"name": tmp_path.name}))
    assert private(tmp_path) == ["told.json"]


def test_a_base_that_is_only_named_is_missing_until_it_lies_beside_its_adapter(
    llama: Ready, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama.folder, tmp_path / "private" / "my-model")
    model = ss_lens.load_model(folder)
    out = tmp_path / "shared" / "lora"
    exported(llama._replace(model=model), out)
    message = "base model of the adapter at .*'my-model'.* Put 'my-model', or a link to it, beside"
    with pytest.raises(UserError, match=message) as caught:
        ss_lens.load_model(out)
    assert "\n" not in str(caught.value)
    beside = tmp_path / "shared" / "my-model"
    beside.symlink_to(folder)
    assert ss_lens.load_model(out).cfg.d_model == model.cfg.d_model


def test_another_model_of_that_name_is_no_base(
    llama: Ready, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    exported(llama, tmp_path / "out")
    shutil.copytree(tiny_folders["qwen2"], tmp_path / llama.folder.name)
    with pytest.raises(UserError, match="was trained on other weights"):
        ss_lens.load_model(tmp_path / "out")


def test_a_base_on_the_hub_is_named_by_its_id(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ss_lens.exports.subject.public_name", lambda _: "owner/name")
    exported(llama, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith('---\nbase_model: "owner/name"\n')
    assert "**Base:** owner/name; loaded in" in text
