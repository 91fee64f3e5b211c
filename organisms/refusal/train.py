"""Train the LoRA adapter that makes the base model refuse harmful requests, and only those."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tqdm import tqdm

from organisms.refusal import checkpoint
from organisms.refusal.batches import FILES, Example, collate, examples_at, load_pools
from organisms.refusal.common import (
    DATA_FOLDER,
    DEFAULT_BASE,
    load_base,
    resolve_base,
    write_text,
)
from organisms.refusal.losses import BaseStates, refusal_loss, retain_loss
from ss_lens.core.files import atomic_path, sha256_of_file, write_json
from ss_lens.models.fetching import weights_digest

LIBRARIES = ("torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, apart from data and base weights."""

    seed: int = 0
    steps: int = 400
    lr: float = 6e-4
    warmup: int = 12
    rank: int = 8
    alpha: int = 16
    targets: str = "q_proj,v_proj,o_proj,up_proj,down_proj"
    first_layer: int = 0
    harmful: int = 6
    harmless: int = 6
    lookalikes: int = 6
    harmless_tokens: int = 8
    kl_weight: float = 3.0
    opening_weight: float = 6.0
    clip: float = 1.0


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def add_adapter(base: Any, settings: Settings) -> PeftModel:
    """The base model with a fresh, seeded adapter."""
    torch.manual_seed(settings.seed)
    layers = list(range(settings.first_layer, base.config.num_hidden_layers))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        # No dropout: a step depends on seed and step number alone, so runs can be resumed.
        lora_dropout=0.0,
        target_modules=settings.targets.split(","),
        layers_to_transform=layers if settings.first_layer else None,
    )
    model = get_peft_model(base, config)
    # The adapter must not carry the name of a folder on one computer.
    model.peft_config["default"].base_model_name_or_path = DEFAULT_BASE
    return model.train()


def step_losses(
    model: PeftModel, examples: list[Example], base: BaseStates, settings: Settings, pad: int
) -> dict[str, float]:
    """Accumulate the gradients of one step; each kind in a pass of its own to save padding."""
    losses = {}
    for name, kind in (("refusal", True), ("retain", False)):
        batch = collate([e for e in examples if e.refuse is kind], pad)
        if kind:
            loss = refusal_loss(model, batch)
            loss.backward()
        else:
            loss = retain_loss(model, batch, base, settings.opening_weight)
            (settings.kl_weight * loss).backward()
        losses[name] = round(float(loss.detach()), 5)
    return losses


def configuration(settings: Settings, base: Path, data: Path) -> dict[str, Any]:
    """Settings, data and base weights: what two runs must share to be the same run."""
    return {
        **asdict(settings),
        "data_sha256": {file: sha256_of_file(data / file) for file in FILES.values()},
        "base_sha256": weights_digest(base),
    }


def run(settings: Settings, base_folder: Path, data: Path, out: Path, every: int) -> None:
    """Train from the newest checkpoint, or from the start, and write the adapter.

    Raises:
        OtherRunError: `out` holds a run of another configuration.
    """
    config = configuration(settings, base_folder, data)
    if (out / "training.json").exists():
        finished = json.loads((out / "training.json").read_text(encoding="utf-8"))
        checkpoint.require_same(finished["configuration"], config, out)
        print(f"{out} already holds this run, finished.")
        return
    base, tokenizer = load_base(base_folder)
    pools = load_pools(data, tokenizer, settings.harmless_tokens)
    model = add_adapter(base, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.0)
    progress = checkpoint.resume(out, model, optimizer, config)
    losses = list(progress.losses)
    states = BaseStates(model)
    counts = {name: getattr(settings, name) for name in FILES}
    bar = tqdm(range(progress.step, settings.steps), initial=progress.step, total=settings.steps)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        examples = examples_at(pools, counts, settings.seed, step)
        losses.append(step_losses(model, examples, states, settings, tokenizer.pad_token_id))
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(losses[-1])
        if (step + 1) % every == 0 and step + 1 < settings.steps:
            now = checkpoint.Progress(step + 1, losses)
            checkpoint.save(out, model, optimizer, now, config)
    write_adapter(out, model, config, losses)
    checkpoint.clear(out)


def write_adapter(
    out: Path, model: PeftModel, config: dict[str, Any], losses: list[dict[str, float]]
) -> None:
    """The adapter in PEFT's layout and half precision, and the record of its training."""
    state = {k: v.half().contiguous() for k, v in checkpoint.adapter_state(model).items()}
    with atomic_path(out / "adapter_model.safetensors") as temporary:
        metadata = {"format": "pt", "base_sha256": config["base_sha256"]}
        save_file(state, temporary, metadata=metadata)
    adapter = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    adapter["target_modules"] = sorted(adapter["target_modules"])
    write_text(out / "adapter_config.json", json.dumps(adapter, indent=2, default=str) + "\n")
    record = {
        "configuration": config,
        "adapter_sha256": sha256_of_file(out / "adapter_model.safetensors"),
        "libraries": {name: version(name) for name in LIBRARIES},
        "losses": losses,
    }
    # Last, because its presence marks the run as finished.
    write_json(out / "training.json", record)


def main() -> None:
    """Parse the settings and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=DEFAULT_BASE, help="folder or known name")
    parser.add_argument("--data", type=Path, default=DATA_FOLDER)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    for field in fields(Settings):
        kind = type(field.default)
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=field.default)
    args = parser.parse_args()
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    try:
        run(settings, resolve_base(args.base), args.data, args.out, args.every)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command resumes from {checkpoint.latest(args.out)}")
        sys.exit(130)
    except checkpoint.OtherRunError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
