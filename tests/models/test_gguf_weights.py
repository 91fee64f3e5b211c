"""Weights out of a GGUF file: bit for bit those of the gguf package and of transformers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from ss_lens.core.errors import UserError
from ss_lens.models.gguf.header import read_header
from ss_lens.models.gguf.weights import dequantised, is_mapped, load_weights
from tests.gguf_files import write_tiny_gguf

KINDS = [
    kind
    for kind in gguf.GGMLQuantizationType
    if kind.name in {"F32", "F16", "BF16"} or hasattr(gguf.quants, kind.name)
]


def file_of(data: np.ndarray, kind: gguf.GGMLQuantizationType, path: Path) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("a.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_format_is_dequantised_as_by_its_own_package(
    kind: gguf.GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ss_lens.models.gguf.weights._PIECE", 1024)  # many pieces, one not whole
    numbers, width = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 100, (7, 768 // numbers * width), np.uint8)
    header = read_header(file_of(data, kind, tmp_path / "one.gguf"))
    with ThreadPoolExecutor(2) as threads:
        ours = dequantised(header, header.tensors[0], torch.float32, threads)
        half = dequantised(header, header.tensors[0], torch.bfloat16, threads)
    theirs = gguf.GGUFReader(header.path).tensors[0]
    wanted = torch.from_numpy(
        np.array(gguf.dequantize(theirs.data, theirs.tensor_type), np.float32).reshape(7, 768)
    )
    assert torch.equal(ours.view(torch.int32), wanted.view(torch.int32))
    assert torch.equal(half.view(torch.int16), wanted.bfloat16().view(torch.int16))


def test_the_header_is_that_of_its_own_package(
    tiny_gguf: tuple[Path, LlamaForCausalLM],
) -> None:
    header, theirs = read_header(tiny_gguf[0]), gguf.GGUFReader(tiny_gguf[0])
    assert header.architecture == "llama"
    assert [(t.name, t.start, t.n_bytes, t.shape[::-1]) for t in header.tensors] == [
        (t.name, t.data_offset, t.n_bytes, tuple(t.shape)) for t in theirs.tensors
    ]
    assert header.n_parameters == sum(p.numel() for p in tiny_gguf[1].parameters())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_that_of_transformers_bit_for_bit(
    architecture: str, dtype: torch.dtype, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    path = write_tiny_gguf(tiny_folders[architecture], architecture, tmp_path / "tiny.gguf")
    header = read_header(path)
    assert is_mapped(header)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    ours, found = load_weights(header, config, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        assert weight.dtype is dtype
        assert torch.equal(weight, wanted[name]), name
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, dict(theirs.named_buffers())[name]), name


def test_a_file_that_ends_within_a_tensor_is_refused(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf[0].read_bytes()[:-100])
    with pytest.raises(UserError, match=r"ends at byte \d+ of \d+, it is cut. Copy or fetch"):
        read_header(path)
