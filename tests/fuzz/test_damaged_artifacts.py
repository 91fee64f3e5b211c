"""Whatever is on disk may be damaged or edited; nothing is then served wrong, and nothing raises.

A trial damages one artifact once. What we wrote ourselves is refused in one line, computed again,
or served as it was; what users write is refused in one line or read as one and the same value.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import ss_lens
from ss_lens import Activations, Calibration, ContrastiveDataset, RunConfig, Store, SweepConfig
from ss_lens.experiments import inputs
from ss_lens.judges.verdict_cache import Reply, VerdictCache
from tests.fuzz.trials import Kind, run_trials

FEW = {"model folder": 24, "adapter": 24, "GGUF": 16, "run": 24, "sweep": 30, "cells": 24}
SLOW = {"run", "cells", "model folder", "adapter", "GGUF"}
"""Kinds that a model computes or is read for; of 20,000 trials in all they get 500 each."""
CONFIG = RunConfig(angles_deg=(0.0, 120.0), dev=2, test=2, max_new_tokens=3, rule="uniform")


def text_of(*tensors: torch.Tensor) -> str:
    """A digest of values and shapes."""
    data = [(tuple(t.shape), t.contiguous().numpy().tobytes()) for t in tensors]
    return sha256(repr(data).encode()).hexdigest()


def text_of_activations(acts: Activations) -> str:
    return text_of(acts.positive, acts.negative) + str(acts.sites)


def text_of_table(table: pd.DataFrame) -> str:
    return str(table.to_json(orient="split", double_precision=15))


def text_of_calibration(cal: Calibration) -> str:
    tensors = text_of(cal.directions, cal.plane.basis, cal.selected)
    return f"{tensors} {cal.direction_site} {cal.selected_sites} {cal.recipe} {cal.report}"


def text_of_model(model: TransformerBridge) -> str:
    with torch.inference_mode():
        return text_of(model(torch.arange(4, 12).unsqueeze(0)))


@pytest.fixture(scope="session")
def prompts(tiny_data: ContrastiveDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": prompt, "class": label}
        for label in ("positive", "negative")
        for prompt in getattr(tiny_data, label)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def folders(
    tiny_folders: dict[str, Path],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tiny_gguf: tuple[Path, Any],
    prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """One undamaged artifact of each kind, in a folder of its own."""
    root = tmp_path_factory.mktemp("whole")
    model, few = tiny_models["llama"], tiny_data.head(5)
    made = {
        name: root / name.replace(" ", "_")
        for name in ("store", "calibration", "reference", "adapter", "GGUF", "dataset", "config",
                     "verdict cache", "run", "sweep")
    }  # fmt: skip
    acts = ss_lens.capture(model, few, store=Store(made["store"]))
    calibration = ss_lens.calibrate(acts, rule="uniform")
    calibration.save(made["calibration"])
    calibration.to_reference(made["reference"])

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(base, lora).save_pretrained(made["adapter"])
    (made["adapter"] / "README.md").unlink()  # nobody reads it
    place = made["adapter"] / "adapter_config.json"
    fields = json.loads(place.read_text())
    place.write_text(json.dumps({**fields, "base_model_name_or_path": str(tiny_folders["llama"])}))

    for name in ("GGUF", "dataset", "config"):
        made[name].mkdir()
    shutil.copy(tiny_gguf[0], made["GGUF"] / "tiny.gguf")
    shutil.copy(prompts, made["dataset"] / "rows.jsonl")
    rows = pd.read_json(prompts, lines=True)
    rows.to_csv(made["dataset"] / "rows.csv", index=False)
    (made["config"] / "sweep.yaml").write_text(
        f"grid:\n  model: {tiny_folders['qwen2']}\n  dataset: {prompts}\n  selection: uniform\n"
        "  angles_deg: {start: 0, stop: 180, step: 60}\nsplit: {dev: 2, test: 2, seed: 0}\n"
        "parts: [dev, test]\n"
        "max_new_tokens: 4\nchoose: {score: refused, goal: minimise, max_perplexity: 100, "
        "max_repetition: 0.5}\n"
    )
    cache = VerdictCache(made["verdict cache"])
    for number in range(4):
        judge = {"name": "tiny", "number": number}
        cache.write(cache.key(judge, "p", "r"), judge, Reply(f"verdict {number}", number))

    store = Store(root / "activations")
    ss_lens.run_main_job(tiny_models["qwen2"], tiny_data, made["run"], CONFIG, store=store)
    config = SweepConfig(
        grid={"model": str(tiny_folders["qwen2"]), "dataset": str(prompts), "selection": "uniform",
              "angles_deg": [0, 120]},
        split={"dev": 2, "test": 2, "seed": 0}, max_new_tokens=4,
    )  # fmt: skip
    ss_lens.run_sweep(config, made["sweep"], store=store)
    return {
        **made,
        "cells": made["sweep"],
        "model folder": tiny_folders["llama"],
        "activations": root / "activations",
    }


@pytest.fixture
def kinds(
    folders: dict[str, Path],
    tiny_folders: dict[str, Path],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Kind]:
    model, few = tiny_models["llama"], tiny_data.head(5)
    monkeypatch.setattr(inputs, "load_model", lambda *args, **options: tiny_models["qwen2"])
    store = Store(folders["activations"])
    keys = [entry.key for entry in Store(folders["store"]).entries()]
    sweep = ss_lens.load_sweep(folders["sweep"]).config

    def from_store(folder: Path) -> str:
        damaged = Store(folder)
        damaged.entries()
        loaded: set[str] = set()
        for key in keys:
            try:
                damaged.verify(key)
                loaded.add(text_of_activations(damaged.load(key)))
            except ss_lens.UserError:
                pass
        captured = text_of_activations(ss_lens.capture(model, few, store=damaged))
        assert loaded <= {captured}
        return captured

    def from_dataset(folder: Path) -> str:
        found = []
        for path in sorted(folder.iterdir()):
            data = ss_lens.load_dataset(path)
            found.append((data.positive, data.negative))
        return repr(found)

    def from_verdicts(folder: Path) -> str:
        cache = VerdictCache(folder)
        replies = []
        for number in range(4):
            judge = {"name": "tiny", "number": number}
            key = cache.key(judge, "p", "r")
            replies.append(cache.read(key) or Reply(f"verdict {number}", number))  # asked again
        return repr(replies)

    def from_run(folder: Path) -> str:
        run = ss_lens.load_run(folder)
        found = (run.responses, run.scores, run.dial, run.choices)
        tables = "".join(map(text_of_table, found)) + run.verdict
        return tables + text_of_calibration(run.calibration) + repr(run.config)

    def again(folder: Path) -> str:
        return text_of_table(ss_lens.run_sweep(sweep, folder, store=store).table)

    def from_sweep(folder: Path) -> str:
        result = ss_lens.load_sweep(folder)
        return text_of_table(result.table) + text_of_table(result.groups) + repr(result.config)

    readers: dict[str, tuple[Callable[[Path], str], bool]] = {
        "store": (from_store, True),
        "calibration": (lambda folder: text_of_calibration(Calibration.load(folder)), True),
        "run": (from_run, True),
        "sweep": (from_sweep, True),
        "cells": (again, True),
        "verdict cache": (from_verdicts, True),
        "reference": (lambda f: text_of_calibration(Calibration.from_reference(f)), False),
        "model folder": (lambda folder: text_of_model(ss_lens.load_model(folder)), False),
        "adapter": (lambda folder: text_of_model(ss_lens.load_model(folder)), False),
        "GGUF": (lambda folder: text_of_model(ss_lens.load_model(folder / "tiny.gguf")), False),
        "dataset": (from_dataset, False),
        "config": (lambda f: repr(ss_lens.load_sweep_config(f / "sweep.yaml")), False),
    }
    return {
        name: Kind(name, folders[name], serve, sealed) for name, (serve, sealed) in readers.items()
    }


NAMES = (
    "store", "calibration", "run", "sweep", "cells", "verdict cache", "reference", "model folder",
    "adapter", "GGUF", "dataset", "config",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_repaired_or_harmless(
    name: str, kinds: dict[str, Kind], tmp_path: Path
) -> None:
    counts = run_trials(kinds[name], tmp_path, range(FEW.get(name, 60)))
    assert sum(counts.values()) == FEW.get(name, 60)
    assert len(counts) > 1 or counts["as it was"]


@pytest.mark.fuzz
@pytest.mark.parametrize("name", NAMES)
def test_damage_of_many_kinds_is_refused_repaired_or_harmless(
    name: str, kinds: dict[str, Kind], tmp_path: Path
) -> None:
    trials = 500 if name in SLOW else 2500
    counts = run_trials(kinds[name], tmp_path, range(1_000_000, 1_000_000 + trials))
    print(f"{name}: {trials} trials, {dict(counts)}")
