"""A small grid on the tiny model whose tokenizer distinguishes refusal openings."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ss_lens import ContrastiveDataset
from tests.experiments.sweeping import Asked

sweep_work = importlib.import_module("ss_lens.experiments.worker")


@pytest.fixture(scope="session")
def prompts_file(tiny_data: ContrastiveDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.jsonl"
    rows = [
        {"prompt": prompt, "class": label}
        for label in ("positive", "negative")
        for prompt in getattr(tiny_data, label)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def asked(tiny_folders: dict[str, Path], prompts_file: Path) -> Asked:
    """A small grid on the model whose tokenizer tells refusal openings apart."""
    return {
        "grid": {
            "model": str(tiny_folders["qwen2"]),
            "dataset": str(prompts_file),
            "selection": "uniform",
            "angles_deg": [0, 120],
        },
        "split": {"dev": 2, "test": 2, "seed": 0},
        "max_new_tokens": 6,
    }


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float]]]:
    """What was measured at which angles, in order."""
    calls: list[tuple[str, list[float]]] = []
    measure: Callable[..., pd.DataFrame] = sweep_work.measured

    def counted(score: str, setting: Any, angles: list[float], *others: Any) -> pd.DataFrame:
        calls.append((score, angles))
        return measure(score, setting, angles, *others)

    monkeypatch.setattr(sweep_work, "measured", counted)
    return calls
