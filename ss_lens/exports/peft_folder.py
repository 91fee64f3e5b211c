"""Adapters as PEFT keeps them, which PEFT and vLLM load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import write_json, write_safetensors
from ss_lens.exports.linear_map import RANK, LowRank
from ss_lens.exports.subject import Base
from ss_lens.models.adapters import CONFIG, WEIGHTS


def write_adapter(
    folder: Path, factors: Mapping[str, LowRank], base: Base, *, fan_in_fan_out: bool
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, in float32.

    Args:
        folder: exists.
        factors: by the module's full name.
        base: what the adapter is for.
        fan_in_fan_out: whether the modules store the transpose of their matrix (``Conv1D``).
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "target_modules": sorted(factors),
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    tensors: dict[str, Tensor] = {}
    for name, change in factors.items():
        for letter, half in (("A", change.a), ("B", change.b)):
            # Each needs memory of its own, though A is the plane for all of them.
            tensors[_key(name, letter)] = half.float().cpu().clone().contiguous()
    metadata = {"format": "pt"} | ({"base_sha256": base.sha256} if base.sha256 else {})
    write_json(folder / CONFIG, config)
    write_safetensors(folder / WEIGHTS, tensors, metadata)


def read_factors(folder: Path) -> dict[str, LowRank]:
    """The factors that :func:`write_adapter` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the adapter at {folder} is missing or damaged ({first_line(error)}); export it again."
        ) from error
    ending = ".lora_A.weight"
    names = [key[len(_PREFIX) : -len(ending)] for key in tensors if key.endswith(ending)]
    return {name: LowRank(tensors[_key(name, "A")], tensors[_key(name, "B")]) for name in names}


_PREFIX = "base_model.model."


def _key(name: str, letter: str) -> str:
    return f"{_PREFIX}{name}.lora_{letter}.weight"


def is_equal(first: Mapping[str, LowRank], second: Mapping[str, LowRank]) -> bool:
    """Whether two adapters hold the same numbers for the same modules."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name].a, second[name].a) and torch.equal(first[name].b, second[name].b)
        for name in first
    )
