"""Every Python line and every picture of the README is what the reader gets."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.documents.readme import README, ROOT, blocks, run_in


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
