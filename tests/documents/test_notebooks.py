"""The notebooks equal their text pairs, define nothing, run, and show their figures."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.documents.readme import ROOT

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
