"""Exports of a model that came as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, RotateBy
from ss_lens.core.files import sha256_of_file
from ss_lens.exports.base import Base
from tests.exports.conftest import Ready, logits, plain
from tests.fitting import fitted_on
from tests.oracles import relative_error

IDS = torch.tensor([[1, 30, 31, 90, 40, 2, 33]])
ASKED = {"prompts": ["ab", "Z"], "max_new_tokens": 4}


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
    assert (base.name, base.sha256) == (str(path), sha256_of_file(path))
    steered = ss_lens.load_model(out)
    with torch.inference_mode():
        got = steered(IDS)
    assert relative_error(got, made.steered(RotateBy(135), IDS)) < 1e-4
