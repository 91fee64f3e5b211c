"""What the tests of several analyses share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


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
