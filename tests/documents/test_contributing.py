"""Each addition that the contributor's guide shows is whole: applied to a copy, it can be used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ss_lens import ContrastiveDataset
from tests.documents.readme import ROOT, run_in

GUIDE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
ADDITIONS = {
    "An operator": "ss_lens/geometry/operators.py",
    "A selection rule": "ss_lens/calibration/site_selection.py",
    "A score": "ss_lens/scoring/questions.py",
    "A figure": "analyses/run_figures/selected_sites.py",
    "A model source": "ss_lens/models/sources.py",
}


def diff_of(addition: str) -> str:
    section = GUIDE.split(f"### {addition}\n")[1].split("\n### ")[0]
    (diff,) = re.findall(r"```diff\n(.*?)```", section, flags=re.DOTALL)
    return diff


def apply(diff: str, tree: Path) -> Path:
    """Apply a diff of one file and one hunk; a hunk without context goes to the end."""
    before, after, _, *lines = diff.splitlines()
    path = tree / after.removeprefix("+++ b/")
    assert (before == "--- /dev/null") == (not path.exists()), path
    text = path.read_text("utf-8") if path.exists() else ""
    old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    if old:
        assert text.count(old) == 1, f"{path.name} holds {text.count(old)} times: {old}"
        text = text.replace(old, new)
    else:
        text = f"{text}\n\n{new}" if text else new
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the packages with every addition of the guide."""
    for package in ("ss_lens", "analyses"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    for addition, file in ADDITIONS.items():
        assert apply(diff_of(addition), tmp_path) == tmp_path / file
    return tmp_path


def test_every_addition_of_the_guide_is_shown_as_a_diff_of_about_ten_lines() -> None:
    assert re.findall(r"### (.*)\n", GUIDE) == [*ADDITIONS]
    for addition in ADDITIONS:
        added = [line for line in diff_of(addition).splitlines()[3:] if line.strip("+ ")]
        assert 1 <= len(added) <= 12, addition


def test_the_rooms_of_the_guide_are_those_of_the_import_order() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (layers,) = re.findall(r"^layers = \[\n(.*?)\]", project, flags=re.DOTALL | re.MULTILINE)
    rooms = re.findall(r"^\| `(\w+)` \|", GUIDE, flags=re.MULTILINE)
    assert rooms == re.findall(r'"(\w+)"', layers)[::-1]
    assert {*rooms} == {
        p.name for p in (ROOT / "ss_lens").iterdir() if (p / "__init__.py").exists()
    }


def test_the_make_targets_of_the_guide_exist() -> None:
    for target in {"setup", *re.findall(r"^make (\w+)", GUIDE, flags=re.MULTILINE)}:
        done = run_in(ROOT, f"make --dry-run {target}")
        assert done.returncode == 0, done.stderr


USE = """
import json, sys
import torch, yaml
import ss_lens
from analyses.__main__ import draw
from ss_lens.cli.main import main
from ss_lens.geometry.operators import TurnBack
from ss_lens.models.sources import MODELS

folder, data = sys.argv[1:]
grid = {"model": folder, "dataset": data, "operator": "TurnBack", "selection": "LastBlocks(n=1)",
        "angles_deg": [0, 90]}
settings = {"grid": [grid], "split": {"dev": 2, "test": 2, "seed": 0}, "max_new_tokens": 3,
            "scores": ["refusal_score", "answers"], "parts": ["test"]}
with open("sweep.yaml", "w") as file:
    yaml.safe_dump(settings, file)
swept = ss_lens.run_sweep(ss_lens.load_sweep_config("sweep.yaml"), "swept").table

sys.argv = ["ss-lens", "run", "--model", folder, "--dataset", data, "--rule", "LastBlocks(n=1)",
            "--angles", "0,90", "--dev", "2", "--test", "2", "--max-new-tokens", "3",
            "--out", "run"]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
calibration = ss_lens.load_run("run").calibration

model, logits = ss_lens.load_model(folder), []
for operator in (TurnBack(90), ss_lens.RotateBy(270), ss_lens.RotateBy(90)):
    with torch.inference_mode(), ss_lens.steer(model, calibration, operator):
        logits.append(model(torch.arange(8, 20).unsqueeze(0)))

with open("found.json", "w") as file:
    json.dump({
        "package": ss_lens.__file__,
        "sweep": {name: sorted(set(swept[name].astype(str))) for name in ("operator", "selection")},
        "questions": bool((swept["n_questions"] == swept["response"].str.count("[?]")).all()),
        "layers": sorted({site.layer for site in calibration.selected_sites}),
        "as_rotation": float((logits[0] - logits[1]).abs().max()),
        "as_another": float((logits[0] - logits[2]).abs().max()),
        "figures": sorted(draw("run")),
        "models": sorted(MODELS),
    }, file)
"""


@pytest.mark.slow
def test_what_the_guide_adds_is_used_by_the_api_by_sweeps_and_on_the_command_line(
    copied: Path, tiny_folders: dict[str, Path], tiny_data: ContrastiveDataset
) -> None:
    rows = [
        {"prompt": prompt, "class": label}
        for label in ("positive", "negative")
        for prompt in getattr(tiny_data, label)
    ]
    (copied / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "PYTHONPATH": str(copied), "SS_LENS_HOME": str(copied / "home")}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tiny_folders["qwen2"]), "tiny.jsonl"],
        cwd=copied, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((copied / "found.json").read_text())
    assert Path(found["package"]).is_relative_to(copied)
    assert found["sweep"] == {"operator": ["TurnBack"], "selection": ["LastBlocks(n=1)"]}
    assert found["questions"]
    assert found["layers"] == [2]
    assert found["as_rotation"] == 0.0 < found["as_another"]
    assert "selected_sites" in found["figures"]
    assert "qwen2.5-0.5b" in found["models"]
