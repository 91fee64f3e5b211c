"""Calibrated tiny models, what an export starts from, and their files loaded by others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, PreTrainedModel

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, Store
from ss_lens.exports.subject import Base, Subject
from ss_lens.exports.verify import subject_of, tokens_for
from ss_lens.geometry.operators import Operator
from ss_lens.models.delivery.kept import GGUF
from tests.fitting import fitted_on
from tests.gguf_files import tiny_gguf as tiny_gguf, write_tiny_gguf

ANGLES = (30.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
PROMPTS = ("w9 w70 w33", "w100 w8", "w55 w56 w57 w58", "w20 w21 w110 w40 w41")


class Ready(NamedTuple):
    """A tiny model, its folder, and a calibration that steers every pre-norm."""

    folder: Path
    model: TransformerBridge
    calibration: Calibration
    subject: Subject

    @torch.inference_mode()
    def steered(self, operator: Operator, ids: Tensor) -> Tensor:
        with ss_lens.steer(self.model, self.calibration, operator):
            return self.model(ids)


Readied = Callable[[str], Ready]


@pytest.fixture(scope="session")
def ready(
    tiny_folders: dict[str, Path],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Readied:
    store = Store(tmp_path_factory.mktemp("store"))
    made: dict[str, Ready] = {}

    def of(name: str) -> Ready:
        if name not in made:
            model = tiny_models[name]
            calibration = fitted_on(model, tiny_data, store)
            tokens = tokens_for(model, calibration.spec.chat, PROMPTS, 1)
            subject, _ = subject_of(
                model, calibration, Base.of(model), ss_lens.RotateBy(90), tokens[0]
            )
            made[name] = Ready(tiny_folders[name], model, calibration, subject)
        return made[name]

    return of


@pytest.fixture
def llama(ready: Readied) -> Ready:
    return ready("llama")


def kept_as_gguf(model: Path, architecture: str, folder: Path) -> TransformerBridge:
    """A model whose folder keeps its weights as a GGUF file, as a fetched one may."""
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    write_tiny_gguf(model, architecture, folder / GGUF, tokenizer=True)
    (folder / "source.json").write_text(json.dumps({"gguf_sha256": "0" * 64}))
    return ss_lens.load_model(folder)


def plain(folder: Path) -> PreTrainedModel:
    """A folder as transformers alone loads it, with its default attention."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    return loaded.eval()


@torch.inference_mode()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def token_ids(ready: Ready) -> list[Tensor]:
    """The prompts in the model's template, ``[1, token]`` each."""
    tokens = tokens_for(ready.model, ready.calibration.spec.chat, PROMPTS, 1)
    return [torch.tensor([ids]) for ids in tokens]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
