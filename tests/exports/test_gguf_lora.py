"""GGUF adapters: llama.cpp's names, orders and metadata, and the same numbers read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoConfig

import ss_lens
from ss_lens import RotateBy, UserError
from ss_lens.exports.gguf_lora import read_gguf_adapter, write_gguf_adapter
from tests.conftest import ARCHITECTURES
from tests.exports.conftest import PROMPTS, Readied, Ready
from tests.gguf_files import interleaved

NAMES = {
    **dict.fromkeys(
        ("llama", "qwen2", "gemma2", "gemma3"),
        ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"),
    ),
    "gpt2": ("attn_qkv", "ffn_up"),
}


def fields_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tensors_are_named_as_llama_cpp_names_them(
    architecture: str, ready: Readied, tmp_path: Path
) -> None:
    made, path = ready(architecture), tmp_path / "adapter.gguf"
    factors = made.subject.factors_of(RotateBy(60))
    write_gguf_adapter(path, factors, made.subject.plain.config)
    told = fields_of(path)
    assert told["general.type"] == "adapter"
    assert told["general.architecture"] == architecture
    assert told["adapter.type"] == "lora"
    assert told["adapter.lora.alpha"] == 2.0
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert set(stored) == {
        f"blk.{layer}.{name}.weight.lora_{letter}"
        for layer in range(3)
        for name in NAMES[architecture]
        for letter in "ab"
    }
    for tensor in stored.values():
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        rank = tensor.shape[1] if tensor.name.endswith("lora_a") else tensor.shape[0]
        assert rank == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_factors_read_back_equal(architecture: str, ready: Readied, tmp_path: Path) -> None:
    made, path = ready(architecture), tmp_path / "adapter.gguf"
    factors, config = made.subject.factors_of(RotateBy(60)), made.subject.plain.config
    write_gguf_adapter(path, factors, config)
    read = read_gguf_adapter(path, [*factors], config)
    assert read.keys() == factors.keys()
    for name, change in factors.items():
        assert torch.equal(read[name].a, change.a.float())
        assert torch.equal(read[name].b, change.b.float())


@pytest.mark.parametrize(("architecture", "permuted"), [("llama", True), ("qwen2", False)])
def test_the_query_and_key_rows_of_llama_alone_are_in_another_order(
    architecture: str, permuted: bool, ready: Readied, tmp_path: Path
) -> None:
    made, path = ready(architecture), tmp_path / "adapter.gguf"
    factors = made.subject.factors_of(RotateBy(60))
    write_gguf_adapter(path, factors, made.subject.plain.config)
    stored = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    for name, heads in (("q", 4), ("k", 2), ("v", 0)):
        b = factors[f"model.layers.1.self_attn.{name}_proj"].b.float()
        if permuted and heads:
            b = torch.from_numpy(interleaved(b.numpy(), heads))
        assert torch.equal(stored[f"blk.1.attn_{name}.weight.lora_b"], b)


def test_a_model_whose_layout_is_unknown_is_refused_by_name(
    llama: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.model.original_model.config, "model_type", "falcon")
    monkeypatch.setattr(ss_lens.Calibration, "check_fits", lambda *_: None)
    with pytest.raises(UserError, match=r"of type 'falcon', expected one of llama, .*kind='lora'"):
        ss_lens.export(
            llama.calibration, llama.model, RotateBy(9), kind="gguf-lora", out=tmp_path / "out",
            prompts=PROMPTS,
        )  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "other modules", "no file"])
def test_a_damaged_file_is_one_line(damage: str, llama: Ready, tmp_path: Path) -> None:
    path, config = tmp_path / "adapter.gguf", llama.subject.plain.config
    factors = llama.subject.factors_of(RotateBy(60))
    write_gguf_adapter(path, factors, config)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    if damage == "no file":
        path.unlink()
    names = [*factors][1:] if damage == "other modules" else [*factors]
    with pytest.raises(UserError, match="export it again") as caught:
        read_gguf_adapter(path, names, config)
    assert "\n" not in str(caught.value)


def test_the_configuration_of_a_plain_folder_orders_rows_the_same(
    llama: Ready, tmp_path: Path
) -> None:
    """What orders the rows is in the model's own configuration, with or without its bridge."""
    factors = llama.subject.factors_of(RotateBy(60))
    configs = (llama.subject.plain.config, AutoConfig.from_pretrained(llama.folder))
    for path, config in zip((tmp_path / "a.gguf", tmp_path / "b.gguf"), configs, strict=True):
        write_gguf_adapter(path, factors, config)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
