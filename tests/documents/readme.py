"""What the README holds that can be run, in this process or in one of its own."""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from ss_lens.cli.main import main
from ss_lens.core.files import cache_root
from ss_lens.datasets.contrastive import load_dataset

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BIN = Path(sys.executable).parent
# Commands that would run for minutes get a small size; nothing else about them is changed.
FEW = "few.jsonl"
"""The first prompts of ``refusal``: what the default splits leave of them is enough to fit."""
SMALL = "--test 2 --dev 1 --angles 0,180 --max-new-tokens 6 --draws 2"
SMALLER = {
    "ss-lens run": f"--dataset {FEW} {SMALL}",
    # Workers import and load for a minute; the tests of the verbs and of sweeps have them.
    "ss-lens ablate": f"--workers 1 --dataset {FEW} --test 2 --dev 1 --angles 180 --draws 1 "
    "--max-new-tokens 4",
    "ss-lens calibrate --dataset sentiment": "--limit 16",
    "python -m analyses.angle_response": f"--dataset {FEW} --test 2 --step 180",
    "python -m analyses.norm_audit": f"--dataset {FEW}",
    "python -m analyses.stability": f"--dataset {FEW} --draws 20",
    "python -m analyses.confounds": f"--dataset {FEW}",
    "python -m analyses.budget": f"--dataset {FEW} --dev 1 --test 2 --step 90",
    "python -m analyses.baselines": f"--dataset {FEW} --dev 1 --test 2 --step 90 --steps 2 "
    "--max-new-tokens 6",
}


def blocks(language: str) -> list[str]:
    """The code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines() -> list[str]:
    """The shell commands of the README, in order, without their comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def in_small(line: str) -> str:
    """The command with the options that make it small."""
    return " ".join([line, *(flags for start, flags in SMALLER.items() if line.startswith(start))])


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell of its own."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )


def run_here(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run ``ss-lens …`` or ``python -m …`` in this process and return its exit code.

    Nothing is shared between two commands but imported modules: each parses its words as the
    console script does, loads its model, and leaves no handler of its log behind.
    """
    words = shlex.split(command)
    log = logging.getLogger("ss_lens")
    handlers, level = [*log.handlers], log.level
    try:
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("default")  # a warning is no failure of a command
            if words[0] == "ss-lens":
                patch.setattr(sys, "argv", words)
                main()
            else:
                assert words[:2] == ["python", "-m"], command
                module = words[2]
                patch.setattr(sys, "argv", [module, *words[3:]])
                for loaded in (module, f"{module}.__main__"):
                    patch.delitem(sys.modules, loaded, raising=False)
                runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)
    return 0


def write_small_copies(folder: Path) -> None:
    """Few prompts, the examples, and the sweeps of ``configs`` with short answers to few of these.

    A sweep keeps its first two grids and their first seed. It has the main job's split at
    small size, so that the store serves what that captured.
    """
    data = load_dataset("refusal").head(60)
    rows = [
        {"prompt": prompt, "class": label}
        for label in ("positive", "negative")
        for prompt in getattr(data, label)
    ]
    (folder / FEW).write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.yaml"):
        config = yaml.safe_load(path.read_text("utf-8"))
        small = {"dataset": FEW, "angles_deg": [0, 180], "seed": 0}
        grids = [{**grid, **small} for grid in config["grid"][:2]]
        config |= {"grid": grids, "split": {"dev": 1, "test": 2, "seed": 0}, "max_new_tokens": 4}
        (folder / "configs" / path.name).write_text(yaml.safe_dump(config))


def link_models(home: Path) -> None:
    """Make a home whose store is empty and whose models are those of the user's cache."""
    models = cache_root() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models, target_is_directory=True)
