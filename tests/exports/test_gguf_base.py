"""Exports of a model that came as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy
from ss_lens.core.files import sha256_of_file
from ss_lens.exports.subject import Base
from tests.exports.conftest import Readied, Ready, kept_as_gguf, logits, plain
from tests.fitting import fitted_on
from tests.oracles import relative_error

IDS = torch.tensor([[1, 30, 31, 90, 40, 2, 33]])
ASKED: dict[str, Any] = {"prompts": ["ab", "Z"], "max_new_tokens": 4}


@pytest.fixture(scope="module")
def from_gguf(
    tiny_gguf: tuple[Path, LlamaForCausalLM],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Ready]:
    path, _ = tiny_gguf
    model = ss_lens.load_model(path)
    data = ContrastiveDataset("t", ("a", "ab", "abc"), ("Z", "ZY", "ZYX"))
    store = ss_lens.Store(tmp_path_factory.mktemp("store"))
    calibration: Calibration = fitted_on(model, data, store)
    return path, Ready(path.parent, model, calibration, None)  # type: ignore[arg-type]


def test_merged_weights_are_those_of_a_plain_folder(
    from_gguf: tuple[Path, Ready], tmp_path: Path
) -> None:
    _, made = from_gguf
    out = tmp_path / "out"
    ss_lens.export(made.calibration, made.model, RotateBy(135), kind="merged", out=out, **ASKED)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    got, expected = logits(plain(out), IDS), made.steered(RotateBy(135), IDS)
    assert relative_error(got, expected) < 1e-4


def test_an_adapter_is_for_the_file_and_loads_on_it(
    from_gguf: tuple[Path, Ready], tmp_path: Path
) -> None:
    path, made = from_gguf
    out = tmp_path / "out"
    ss_lens.export(made.calibration, made.model, RotateBy(135), kind="lora", out=out, **ASKED)
    base = Base.of(made.model)
    assert (base.name, base.sha256) == (path.name, sha256_of_file(path))
    (tmp_path / path.name).symlink_to(path)
    steered = ss_lens.load_model(out)
    with torch.inference_mode():
        got = steered(IDS)
    assert relative_error(got, made.steered(RotateBy(135), IDS)) < 1e-4


@pytest.mark.parametrize(("form", "bound"), [("f16", 2e-3), ("q8_0", 2e-2)])
def test_merged_weights_are_written_as_a_gguf_file(
    form: Any, bound: float, from_gguf: tuple[Path, Ready], tmp_path: Path
) -> None:
    """Whose vocabulary and other tensors are the base's, byte for byte."""
    path, made = from_gguf
    out = tmp_path / "out"
    exported = ss_lens.export(
        made.calibration, made.model, RotateBy(135), kind="merged", out=out, gguf=form, **ASKED
    )
    assert exported.parity["dtype"].tolist() == ["float32", form]
    assert exported.parity["relative"][1] < bound
    again = ss_lens.verify_export(out, made.model, prompts=ASKED["prompts"])
    assert again.parity.equals(exported.parity)
    before, after = (gguf.GGUFReader(p) for p in (path, out / "model.gguf"))
    told = [{k: f.contents() for k, f in r.fields.items()} for r in (before, after)]
    assert told[0] == told[1]
    readers = ("attn_q.", "attn_k.", "attn_v.", "ffn_gate.", "ffn_up.")
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.name == new.name
        if any(name in old.name for name in readers):
            assert new.tensor_type.name.lower() == form
        else:
            assert np.array_equal(old.data, new.data)
            assert old.tensor_type == new.tensor_type
    steered = ss_lens.load_model(out / "model.gguf")
    with torch.inference_mode():
        got = steered(IDS)
    assert relative_error(got, made.steered(RotateBy(135), IDS)) < bound
    assert "ollama create" in (out / "README.md").read_text()


def test_a_shift_of_a_gguf_file_goes_into_its_biases(
    ready: Readied, tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    """Qwen2's attention has biases."""
    model = kept_as_gguf(ready("qwen2").folder, "qwen2", tmp_path / "kept")
    calibration = fitted_on(model, tiny_data, ss_lens.Store(tmp_path / "store"), "ln1_out")
    exported = ss_lens.export(
        calibration, model, ss_lens.Add(alpha=2), kind="merged", out=tmp_path / "out", gguf="f16",
        prompts=["ab", "Z"], max_new_tokens=4,
    )  # fmt: skip
    assert exported.parity["relative"][1] < 5e-3
    assert exported.parity["steered_relative"][1] > 5e-2
