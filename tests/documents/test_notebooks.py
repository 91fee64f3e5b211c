"""The notebooks equal their text pairs, define nothing, run, and show their figures."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from transformers import LlamaForCausalLM

import ss_lens
from ss_lens import ContrastiveDataset
from tests.conftest import SHARED
from tests.documents.readme import ROOT, link_models
from tests.gguf_files import tiny_gguf as tiny_gguf

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


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


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_takes_its_model_from_the_environment(source: Path) -> None:
    text = source.read_text("utf-8")
    assert 'os.environ.get("SS_LENS_NOTEBOOK_MODEL", DEFAULT_MODEL)' in text
    assert not re.search(r"""load_model\(["']|model=["']""", text)


FEW = "prompts_per_class = 16\nheld_out = 4\n"
"""Split alike, so that one capture serves several notebooks."""
LENIENT = (
    "from dataclasses import replace\n"
    "from ss_lens.experiments.ablations import variants as ablation\n"
    "ablation.CRITERION = replace(ablation.CRITERION, max_perplexity=None, max_repetition=None, "
    "max_collapsed=1.0)\n"
)
"""A random model's answers are noise, so nothing may count as collapsed."""
SMALL_NOTEBOOKS = {
    "01_quickstart": f"{FEW}answers_to = 1\nangles = (0, 180)\nnew_tokens = 4",
    "02_ablations": (
        f"{LENIENT}folder, dataset = {{folder!r}}, {{tiny!r}}\n"
        "angles = (0, 75, 120, 200)\ndev = test = 2\ndraws = 1\nnew_tokens = 4"
    ),
    "03_your_own_behaviour": "angles = (0, 180)\nheld_out = 2\nnew_tokens = 4",
    "04_where_does_it_live": f"{FEW}resamples = 20\nfew = 1\nangle = 180",
    "05_choosing_an_angle": (
        "folder, dataset = {folder!r}, {dataset!r}\n"
        "angles = (0, 120)\ndev = test = 1\nnew_tokens = 4"
    ),
    "06_published_calibrations": f"{FEW}published = {{published!r}}",
    "07_export_and_serve": (
        "dataset, prompts_per_class = {letters!r}, 6\nangle, compared, new_tokens = 135, 2, 4\n"
        "served = {served!r}"
    ),
    "08_paper_figures": (
        "folder = {folder!r}\nprompts_per_class = 16\nangles = (0, 180)\ndev = test = 4\n"
        "draws = 1\nnew_tokens = 4"
    ),
}
ON_A_TINY_MODEL = ("02_ablations",)
ON_A_TINY_FILE = ("07_export_and_serve",)
"""A GGUF file, which llama.cpp serves as well."""
SHOWN = {
    "01_quickstart": (4, 1, 0),
    "02_ablations": (3, 0, 0),
    "03_your_own_behaviour": (2, 1, 0),
    "04_where_does_it_live": (9, 0, 0),
    "05_choosing_an_angle": (0, 1, 0),
    "06_published_calibrations": (1, 0, 0),
    "07_export_and_serve": (0, 0, 0),
    "08_paper_figures": (1, 0, 3),
}
"""How often there is each of :data:`KINDS`."""
KINDS = (
    *("application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"),
    "image/svg+xml",
)
"""Figures, dials, and figures for print."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of one who reads all notebooks: models, and what the ones before have captured."""
    home = tmp_path_factory.mktemp("home")
    link_models(home)
    return home


@pytest.fixture(scope="module")
def few_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts per class of the embedded dataset, in a file."""
    data = ss_lens.load_dataset("refusal").head(10)
    classes = {"positive": data.positive, "negative": data.negative}
    path = tmp_path_factory.mktemp("data") / "few.json"
    path.write_text(json.dumps(classes))
    return path


@pytest.fixture(scope="module")
def tiny_prompts(tiny_data: ContrastiveDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts for a tiny model: thirteen variants of the default model take minutes."""
    classes = {"positive": tiny_data.positive, "negative": tiny_data.negative}
    path = tmp_path_factory.mktemp("data") / "tiny.json"
    path.write_text(json.dumps(classes))
    return path


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts for the tiny model in a GGUF file, whose tokens are letters, in a short context."""
    classes = {
        "positive": ["abcdef"[:n] for n in range(1, 7)],
        "negative": ["ZYXWVU"[:n] for n in range(1, 7)],
    }
    path = tmp_path_factory.mktemp("data") / "letters.json"
    path.write_text(json.dumps(classes))
    return path


def published_folder() -> str:
    """One of the authors' folders where it is at hand; else the notebook writes its own."""
    folder = SHARED / "reference" / "Qwen2.5-1.5B-Instruct"
    return str(folder) if folder.exists() else ""


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_small_size_and_shows_its_figures(
    source: Path,
    reader: Path,
    few_prompts: Path,
    tiny_prompts: Path,
    letters: Path,
    tiny_folders: dict[str, Path],
    tiny_gguf: tuple[Path, LlamaForCausalLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SS_LENS_HOME", str(reader))
    monkeypatch.delenv("SS_LENS_NOTEBOOK_MODEL", raising=False)
    if source.stem in ON_A_TINY_MODEL:
        monkeypatch.setenv("SS_LENS_NOTEBOOK_MODEL", str(tiny_folders["qwen2"]))
    if source.stem in ON_A_TINY_FILE:
        monkeypatch.setenv("SS_LENS_NOTEBOOK_MODEL", str(tiny_gguf[0]))
    notebook = jupytext.read(source)
    parameters = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1
    parameters[0].source = SMALL_NOTEBOOKS[source.stem].format(
        folder=str(tmp_path / "run"),
        dataset=str(few_prompts),
        tiny=str(tiny_prompts),
        letters=str(letters),
        published=published_folder(),
        served=str(tiny_gguf[0]) if find_spec("xllamacpp") else "",
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    mimes = [
        mime
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for mime in output.get("data", {})
    ]
    assert tuple(map(mimes.count, KINDS)) == SHOWN[source.stem]
