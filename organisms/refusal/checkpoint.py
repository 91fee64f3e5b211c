"""Save and resume a training run: every checkpoint is whole or absent."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

PREFIX = "checkpoint-"


class OtherRunError(RuntimeError):
    """The output folder holds a run of another configuration."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    losses: list[dict[str, float]]


def latest(out: Path) -> Path | None:
    """The newest checkpoint folder of a run, if it has one."""
    found = sorted(out.glob(f"{PREFIX}[0-9]*"))
    return found[-1] if found else None


def require_same(saved: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        OtherRunError: the configurations differ; the message names the settings.
    """
    differing = sorted(k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k))
    if differing:
        changes = ", ".join(f"{k} ({saved.get(k)} there, {wanted.get(k)} now)" for k in differing)
        raise OtherRunError(
            f"{out} holds a run of another configuration: {changes}. "
            "Give the same settings to continue it, or another --out."
        )


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights alone."""
    # "auto" would ask a model hub whether the vocabulary grew; it did not.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: value.contiguous() for key, value in state.items()}


def save(
    out: Path,
    model: PeftModel,
    optimizer: Optimizer,
    progress: Progress,
    configuration: dict[str, Any],
) -> None:
    """Write a checkpoint in full under a temporary name, then rename it and drop older ones."""
    out.mkdir(parents=True, exist_ok=True)
    older = [*out.glob(f"{PREFIX}[0-9]*"), *out.glob(".writing-*")]
    folder = Path(tempfile.mkdtemp(dir=out, prefix=".writing-"))
    save_file(adapter_state(model), folder / "adapter.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    record = {
        "step": progress.step,
        "losses": progress.losses,
        "configuration": configuration,
    }
    (folder / "progress.json").write_text(json.dumps(record), encoding="utf-8")
    folder.replace(out / f"{PREFIX}{progress.step:06d}")
    for path in older:
        shutil.rmtree(path)


def resume(
    out: Path, model: PeftModel, optimizer: Optimizer, configuration: dict[str, Any]
) -> Progress:
    """Load the newest checkpoint into model and optimizer, or start at step 0.

    Raises:
        OtherRunError: the checkpoint belongs to another configuration.
    """
    folder = latest(out)
    if folder is None:
        return Progress(0, [])
    record = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    require_same(record["configuration"], configuration, out)
    set_peft_model_state_dict(model, load_file(folder / "adapter.safetensors"))
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    return Progress(record["step"], record["losses"])


def clear(out: Path) -> None:
    """Remove the checkpoints of a finished run."""
    for path in [*out.glob(f"{PREFIX}[0-9]*"), *out.glob(".writing-*")]:
        shutil.rmtree(path)
