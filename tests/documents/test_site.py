"""The documentation builds strictly, without a network, and shows what the pages promise."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from ss_lens import __all__ as PUBLIC
from tests.documents.readme import BIN, ROOT, run_in

REFERENCE = [*ROOT.glob("docs/reference/api-*.md")]
ELSEWHERE = (
    *("CONTRIBUTING.md", "CHANGELOG.md", "organisms/refusal/MODEL_CARD.md"),
    "organisms/refusal_classifier/MODEL_CARD.md",
)
LOADED = re.compile(
    r'<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of the build is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = run_in(
        ROOT, f'NO_MKDOCS_2_WARNING=1 "{BIN}/mkdocs" build --strict --site-dir "{folder}"'
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def names_in_the_reference() -> list[str]:
    texts = [path.read_text("utf-8") for path in REFERENCE]
    return [name for text in texts for name in re.findall(r"^::: ss_lens\.([\w.]+)$", text, re.M)]


def test_every_public_name_stands_in_the_reference_once() -> None:
    names = names_in_the_reference()
    assert len(names) == len({*names})
    assert {name for name in names if "." not in name} == {*PUBLIC}


@pytest.mark.slow
def test_the_site_builds_strictly_and_shows_every_docstring(site: Path) -> None:
    shown = "".join(path.read_text("utf-8") for path in site.glob("reference/api-*.html"))
    for name in names_in_the_reference():
        assert f'id="ss_lens.{name}"' in shown, name
    assert ":func:" not in shown
    assert ":class:" not in shown


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    built = [*site.glob("**/*.html")]
    assert len(built) >= 40
    for path in built:
        loaded = LOADED.findall(path.read_text("utf-8"))
        assert not loaded, f"{path}: {loaded[:2]}"


@pytest.mark.slow
def test_an_index_links_every_page_of_its_folder(site: Path) -> None:
    for folder in ("results", "adr", "concepts", "how-to", "reference"):
        index = (site / folder / "index.html").read_text("utf-8")
        main = index[index.index("<article") :]
        for page in (site / folder).glob("*.html"):
            assert page.name == "index.html" or f'href="{page.name}"' in main, page


@pytest.mark.slow
def test_the_notebooks_are_pages_of_the_site(site: Path) -> None:
    for notebook in ROOT.glob("notebooks/*.ipynb"):
        page = (site / "notebooks" / f"{notebook.stem}.html").read_text("utf-8")
        assert "cdnjs" not in page
        assert "jp-Notebook" in page


@pytest.mark.slow
@pytest.mark.parametrize("executed", [False, True])
def test_a_notebook_is_shown_with_its_outputs_where_it_is_run(
    executed: bool, tmp_path: Path
) -> None:
    """A site of one notebook and an index, with the hooks and the plugin's settings of this one."""
    for place in ("docs", "notebooks"):
        (tmp_path / place).mkdir()
    for name in ("hooks.py", "roles.py"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs" / name)
    (tmp_path / "docs" / "index.md").write_text("# A site\n")
    for place in ELSEWHERE:
        page = tmp_path / place
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("# A page\n")
    cells = [
        "print(6 * 7 * 1001)",
        "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]))",
        "import anywidget\nanywidget.AnyWidget()",
        "from ss_lens.core import progress\nprogress.AFTER_SECONDS = 0\n"
        "with progress.progress_bar(2, 'a bar', 'step') as bar:\n    bar.update(2)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(notebook, tmp_path / "notebooks" / "only.ipynb")
    before = (tmp_path / "notebooks" / "only.ipynb").read_bytes()
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[0]
    nav = ["index.md", *ELSEWHERE, "notebooks/only.ipynb"]
    listed = "\n".join(f"  - Page: {place}" for place in nav)
    (tmp_path / "mkdocs.yml").write_text(f"{settings}\nnav:\n{listed}\n")
    asked = f"SS_LENS_DOCS_EXECUTE={str(executed).lower()} NO_MKDOCS_2_WARNING=1"
    done = run_in(tmp_path, f'{asked} "{BIN}/mkdocs" build --site-dir site')
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "notebooks" / "only.html").read_text("utf-8")
    assert ("42042" in page) == executed
    assert ("plotly-graph-div" in page) == ("Plotly.newPlot" in page) == executed
    assert ("It turns where the notebook runs" in page) == executed
    assert not LOADED.findall(page)
    assert "unpkg.com" not in page
    assert "a bar:" not in page
    assert (tmp_path / "notebooks" / "only.ipynb").read_bytes() == before
