"""Adapters as llama.cpp keeps them: a GGUF file with the two factors of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from ss_lens.core.errors import UserError
from ss_lens.exports.linear_map import RANK, LowRank

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "phi3": gguf.MODEL_ARCH.PHI3,
}
"""From the type of a Hugging Face model to llama.cpp's architecture."""
_ROTARY_HALVES = ("llama", "mistral")
"""llama.cpp orders the query and key rows of these by pairs, transformers by halves."""


def check_architecture(config: Any) -> None:
    """Raise where it is not known how llama.cpp names and orders the weights of a model."""
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"no GGUF adapter can be written for a model of type {config.model_type!r}, expected "
            f"one of {', '.join(ARCHITECTURES)}. Export kind='lora', and convert it with "
            "llama.cpp's convert_lora_to_gguf.py."
        )


def write_gguf_adapter(path: Path, factors: Mapping[str, LowRank], config: Any) -> None:
    """Write the factors in float32 under llama.cpp's names, with alpha = rank (a scale of 1).

    Args:
        path: of the file.
        factors: by the module's full name in the Hugging Face model.
        config: of that model.
    """
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(RANK))
    for name, change in factors.items():
        rows = row_order(name, len(change.b), config)
        for letter, half in (("a", change.a), ("b", change.b[rows])):
            array = half.float().cpu().contiguous().numpy()
            writer.add_tensor(f"{stem_of(name, config)}.weight.lora_{letter}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf_adapter(path: Path, names: list[str], config: Any) -> dict[str, LowRank]:
    """The factors of the modules ``names``, as :func:`write_gguf_adapter` wrote them.

    Raises:
        UserError: the file is damaged, or for other modules.
    """
    try:
        stored = {
            tensor.name: torch.from_numpy(np.array(tensor.data))
            for tensor in gguf.GGUFReader(path).tensors
        }
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"the GGUF adapter at {path} is missing or damaged ({error}); export it again."
        ) from error
    keys = {name: [f"{stem_of(name, config)}.weight.lora_{x}" for x in "ab"] for name in names}
    if {key for pair in keys.values() for key in pair} != set(stored):
        raise UserError(
            f"the GGUF adapter at {path} holds {len(stored)} tensors, expected those of "
            f"{len(names)} modules; export it again."
        )
    found = {}
    for name, (key_a, key_b) in keys.items():
        b = torch.empty_like(stored[key_b])
        b[row_order(name, len(b), config)] = stored[key_b]
        found[name] = LowRank(stored[key_a], b)
    return found


def stem_of(name: str, config: Any) -> str:
    """llama.cpp's name of a module, without the suffix."""
    layers = config.get_text_config().num_hidden_layers
    table = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], layers)
    stem = table.get_name(name)
    assert stem is not None, name
    return stem


def row_order(name: str, rows: int, config: Any) -> Tensor:
    """Which row of a matrix comes first, second, … in llama.cpp's file."""
    order = torch.arange(rows)
    if config.model_type in _ROTARY_HALVES and name.endswith((".q_proj", ".k_proj")):
        query = name.endswith(".q_proj")
        heads = config.num_attention_heads if query else config.num_key_value_heads
        order = order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return order
