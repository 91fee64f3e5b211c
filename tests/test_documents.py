"""README, notebooks and help texts do what they say: every command and every line is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from ss_lens.core.files import cache_root

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
BIN = Path(sys.executable).parent
# Commands that would run for minutes get a small size; nothing else about them is changed.
SMALL = "--test 2 --dev 1 --angles 0,180 --max-new-tokens 6"
SMALLER = {
    "ss-lens run": SMALL,
    "ss-lens ablate": "--test 2 --dev 1 --angles 180 --draws 1 --max-new-tokens 4",
    "python -m analyses.angle_response": "--test 2 --step 180",
    "python -m analyses.budget": "--dev 1 --test 2 --step 90",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )


def write_small_copies(folder: Path) -> None:
    """The sweeps of ``configs`` with their first two grids, few prompts, short answers."""
    folder.mkdir()
    for path in (ROOT / "configs").glob("*.yaml"):
        config = yaml.safe_load(path.read_text("utf-8"))
        grids = [{**grid, "angles_deg": [0, 180]} for grid in config["grid"][:2]]
        config |= {"grid": grids, "split": {"dev": 1, "test": 1, "seed": 0}, "max_new_tokens": 6}
        (folder / path.name).write_text(yaml.safe_dump(config))


@pytest.fixture
def new_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store, so that what other runs left behind decides nothing; models are kept."""
    home = tmp_path_factory.mktemp("home")
    models = cache_root() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(models, target_is_directory=True)
    monkeypatch.setenv("SS_LENS_HOME", str(home))


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
def test_every_shell_command_of_the_readme_runs_in_order(tmp_path: Path) -> None:
    write_small_copies(tmp_path / "configs")
    ran = []
    for line in shell_lines():
        if line.startswith("make"):
            continue
        small = [flags for start, flags in SMALLER.items() if line.startswith(start)]
        command = " ".join([line, *small])
        done = run_in(tmp_path, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append(line)
    assert len(ran) >= 5


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        done = run_in(ROOT, f"make --dry-run {target}")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_demo_runs_the_main_job_and_draws_its_figures(tmp_path: Path) -> None:
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("the environment was not made by make")
    out = tmp_path / "run"
    done = run_in(ROOT, f'make demo RUN_DIR="{out}" RUN_FLAGS="{SMALL}"')
    assert done.returncode == 0, done.stdout + done.stderr
    assert "direction site" in done.stdout
    for name in ("sign_agreement", "norm_growth", "cosine_heatmap"):
        assert (out / "figures" / f"{name}.html").stat().st_size > 1e6


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
def test_every_python_block_of_the_readme_runs(tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    assert code
    script = tmp_path / "readme.py"
    script.write_text(code, "utf-8")
    done = run_in(tmp_path, f"{sys.executable} -W error::UserWarning {script}")
    assert done.returncode == 0, done.stderr


def test_the_pictures_of_the_readme_are_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).exists(), picture


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_equals_its_text_pair_and_holds_no_outputs(source: Path) -> None:
    text = jupytext.read(source)
    stored = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [(c.cell_type, c.source) for c in text.cells] == [
        (c.cell_type, c.source) for c in stored.cells
    ]
    for cell in stored.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing(source: Path) -> None:
    assert not re.search(r"^\s*(def|class) ", source.read_text("utf-8"), flags=re.MULTILINE)


SMALL_NOTEBOOKS = {
    "01_quickstart": "prompts_per_class = 12\nheld_out = 4\nanswers_to = 1\nnew_tokens = 4",
    "02_ablations": (
        "folder = {folder!r}\nangles = (120,)\ndev = test = draws = 1\nnew_tokens = 4"
    ),
}
FIGURES = {"01_quickstart": 3, "02_ablations": 3}


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_small_size_and_shows_its_figures(source: Path, tmp_path: Path) -> None:
    notebook = jupytext.read(source)
    parameters = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1
    parameters[0].source = SMALL_NOTEBOOKS[source.stem].format(folder=str(tmp_path / "run"))
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    mimes = [
        mime
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for mime in output.get("data", {})
    ]
    assert mimes.count("application/vnd.plotly.v1+json") == FIGURES[source.stem]
