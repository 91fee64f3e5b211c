"""What the tests of several analyses share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; where it or playwright is absent, what needs it is skipped."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are tried in a browser by playwright, which is absent"
    )
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("pages are tried in Chromium, which is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """48 prompts per class whose words the tiny tokenizer knows; w60 and w61 mark the classes."""
    rows = [
        {"prompt": f"w{8 + i} w{60 + side} w{100 + i % 7}", "class": ("positive", "negative")[side]}
        for i in range(48)
        for side in (0, 1)
    ]
    path = tmp_path / "tiny.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
