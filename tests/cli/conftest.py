"""``ss-lens`` in this process, a tiny model and a tiny dataset for it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ss_lens import ContrastiveDataset
from ss_lens.cli import main as cli
from tests.cli.command import CommandLine, Finished


@pytest.fixture
def ss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """``ss-lens`` in this process, with the exit code that a shell would see."""
    logger = logging.getLogger("ss_lens")
    handlers, level = list(logger.handlers), logger.level
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["ss-lens", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        logger.handlers[:] = handlers
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return Finished(code or 0, *capsys.readouterr())

    yield run
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def llama(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["llama"]


@pytest.fixture
def data(tiny_data: ContrastiveDataset, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    rows = [{"prompt": p, "class": "positive"} for p in tiny_data.positive]
    rows += [{"prompt": p, "class": "negative"} for p in tiny_data.negative]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def main_job(tiny_folders: dict[str, Path], data: Path, tmp_path: Path) -> tuple[object, ...]:
    """The main job at its smallest: 12 prompts per class, 2 angles, 3 new tokens, 2 draws.

    On the model whose tokenizer tells refusal openings apart.
    """
    where = ("--model", tiny_folders["qwen2"], "--dataset", data, "--out", tmp_path / "run")
    sizes = ("--dev", 2, "--test", 3, "--max-new-tokens", 3)
    return ("run", *where, *sizes, "--rule", "uniform", "--angles", "0,90", "--draws", "2")
