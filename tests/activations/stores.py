"""What the tests of the store share: forward passes counted, a set's files, and earlier formats."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import Activations

capture_module = importlib.import_module("ss_lens.activations.capture")
N_SHARDS = 6


@contextmanager
def forward_passes(model: TransformerBridge, stop_at: int | None = None) -> Iterator[list[int]]:
    """Rows of each forward pass; Ctrl-C arrives in pass ``stop_at``, counted from 0."""
    seen: list[int] = []

    def count(module: torch.nn.Module, args: tuple) -> None:
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        seen.append(args[0].shape[0])

    handle = model.original_model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def contents(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {".lock"}


def whole(n_shards: int = N_SHARDS) -> set[str]:
    return {"manifest.json", *(f"shard-{i:05d}.safetensors" for i in range(n_shards))}


def same(a: Activations, b: Activations) -> bool:
    return torch.equal(a.positive, b.positive) and torch.equal(a.negative, b.negative)


def rewrite_as_format_1(folder: Path) -> None:
    """A set as the first version wrote it: no seal, and digests of the values alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    spec = {k: v for k, v in manifest["spec"].items() if k not in ("chat", "prompt_digests")}
    old = {"format": 1, "spec": spec, "shards": manifest["shards"]}
    (folder / "manifest.json").write_text(json.dumps(old, indent=2))
    for path in folder.glob("shard-*"):
        with safe_open(path, framework="pt") as file:
            values = file.get_tensor("values")
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
        save_file({"values": values}, path, {"sha256": digest})
