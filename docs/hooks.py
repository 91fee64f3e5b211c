"""What the site shows beside this folder: the notebooks, and pages that lie elsewhere."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "organisms/refusal/MODEL_CARD.md",
    "organisms/refusal_classifier/MODEL_CARD.md",
    *(f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/*.ipynb"))),
)
"""Pages outside of this folder; the site has them under the same path."""
PAGES = "<!-- pages -->"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:)([^)\s#]+)(#[^)\s]*)?\)")
FETCHED = re.compile(
    r'<(?:script|link)\b[^>]*\b(?:src|href)="https?://[^>]*>(?:\s*</script>)?'
    r'|<script type="module">(?:(?!</script>).)*?mermaid.*?</script>',
    flags=re.DOTALL,
)
"""What a notebook's page would fetch from elsewhere: formulas as pictures, and diagrams."""
WIDGETS = re.compile(
    r"<script>(?:(?!</script>).)*?widgetRendererSrc.*?</script>"
    r'|<script type="application/vnd\.jupyter\.widget-state\+json">.*?</script>',
    flags=re.DOTALL,
)
"""What would fetch the widgets' own library, and their state."""
WIDGET = re.compile(r'(<div class="jupyter-widgets[^>]*>).*?</div>', flags=re.DOTALL)
IN_PLACE = r"\1<p><em>A dial. It turns where the notebook runs.</em></p></div>"
AS_RUN = {"TQDM_DISABLE": "1", "PLOTLY_RENDERER": "notebook"}
"""For notebooks that are run: no bars, and figures with the library that draws them."""


def on_config(config: Any) -> Any:
    """Put all pages of a folder where the navigation names the folder."""
    os.environ.update(AS_RUN)
    config.nav = [
        {
            title: _pages_of(place) if place.endswith("/") else place
            for title, place in entry.items()
        }
        for entry in config.nav
    ]
    return config


def _pages_of(folder: str) -> list[str]:
    """The pages of a folder: its index, those that it links in their order, then the others."""
    docs = ROOT / "docs"
    own = [path.relative_to(docs).as_posix() for path in docs.glob(f"{folder}*.md")]
    index = docs / folder / "index.md"
    linked = LINK.findall(index.read_text("utf-8")) if index.exists() else []
    order = ["index.md", *(target for _, target, _ in linked)]

    def place_in_order(place: str) -> tuple[int, str]:
        name = posixpath.basename(place)
        return (order.index(name) if name in order else len(order), place)

    found = own + [place for place in ELSEWHERE if place.startswith(folder)]
    return sorted(found, key=place_in_order)


@event_priority(100)  # before the notebooks are looked for
def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for place in ELSEWHERE:
        files.append(File(place, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """List the pages of a folder where its index asks for it, and mend the links between places.

    A link to what the site does not show, a source file, becomes its text.
    """
    place = page.file.src_uri
    origin = place if place in ELSEWHERE else f"docs/{place}"

    def mended(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        to = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not (to in ELSEWHERE or to.startswith("docs/")):
            return text if (ROOT / to).exists() else link[0]
        here = posixpath.dirname(place) or "."
        return f"[{text}]({posixpath.relpath(to.removeprefix('docs/'), here)}{anchor})"

    if PAGES in markdown:
        markdown = markdown.replace(PAGES, _listed(place))
    return LINK.sub(mended, markdown)


def _listed(index: str) -> str:
    """Links to the other pages of an index's folder, by their headings."""
    lines = []
    for place in _pages_of(f"{posixpath.dirname(index)}/"):
        path = ROOT / "docs" / place
        if place != index and path.exists():
            heading = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
            lines.append(f"- [{heading}]({posixpath.basename(place)})")
    return "\n".join(lines)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Drop the scripts that a page would fetch from elsewhere, and say where widgets live."""
    if "jupyter-widgets" in output:
        output = WIDGET.sub(IN_PLACE, WIDGETS.sub("", output))
    return FETCHED.sub("", output)
