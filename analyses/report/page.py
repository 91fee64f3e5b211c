"""The page: one HTML file that holds its data, its style and its script, and asks for nothing."""

from __future__ import annotations

from html import escape
from importlib import resources

from analyses.report import sections
from analyses.report.contents import Contents
from analyses.report.packed import as_json, packed

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def page(contents: Contents) -> str:
    """The report as HTML. All texts are escaped; the page may load nothing, by its own policy."""
    parts = (
        sections.verdict(contents),
        sections.dial(contents),
        sections.costs(contents),
        sections.tables(contents),
        sections.sites(contents),
        sections.samples(contents),
        sections.made(contents),
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(contents.title)} · ss_lens</title>",
            f"<style>\n{_asset('page.css')}</style>",
            "</head>",
            "<body>",
            "<header>",
            '<p class="over">ss_lens report</p>',
            f"<h1>{escape(contents.title)}</h1>",
            f'<p class="sub">{escape(contents.subtitle)}</p>',
            "</header>",
            "<main>",
            "<noscript><p>The dial, the curves and the tables of answers need JavaScript, which "
            "is switched off.</p></noscript>",
            *filter(None, parts),
            "</main>",
            "<footer>Requests and scores are shown; what answers "
            f"{escape(contents.classes['positive'])} prompts is folded away.</footer>",
            f'<script type="application/json" id="data">{as_json(packed(contents))}</script>',
            f"<script>\n(() => {{\n'use strict';\n{_script()}}})();\n</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _asset(name: str) -> str:
    return resources.files("analyses.report").joinpath(f"assets/{name}").read_text("utf-8")


def _script() -> str:
    folder = resources.files("analyses.report").joinpath("assets")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".js"))
    return "".join(_asset(name) for name in names)
