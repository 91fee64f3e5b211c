"""Every Python line and every picture of the README and the documentation is what one gets."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from ss_lens.behaviours import load_behaviour
from ss_lens.behaviours.questions import KEYS
from ss_lens.experiments.config import SweepConfig
from tests.documents.pages import MARKS, Block, blocks, commands_to_run, pages
from tests.documents.readme import README, ROOT, run_in

BLOCKS = [*blocks()]
RUN = """
import functools, runpy, sys
import ss_lens
load = ss_lens.load_dataset
ss_lens.load_model = functools.lru_cache(ss_lens.load_model)  # once for all pages
ss_lens.load_dataset = lambda *given, **named: load(*given, **named).head(56)  # small
for path in sys.argv[1:]:
    runpy.run_path(path, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
def test_every_python_block_that_is_shown_to_run_runs(tmp_path: Path) -> None:
    """The blocks of a page one after the other, the pages each by themselves, in one process."""
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    code: dict[str, str] = {}
    for block in BLOCKS:
        if block.language == "python" and not block.mark:
            code[block.page] = code.get(block.page, "") + block.text
    assert "README.md" in code
    assert len(code) >= 10
    scripts = []
    for page, text in code.items():
        scripts.append(tmp_path / f"{page.replace('/', '_')}.py")
        scripts[-1].write_text(text, "utf-8")
    runner = tmp_path / "run.py"
    runner.write_text(RUN, "utf-8")
    paths = " ".join(map(str, scripts))
    done = run_in(tmp_path, f"{sys.executable} -W error::UserWarning {runner} {paths}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_block_says_whether_it_is_run() -> None:
    for block in BLOCKS:
        allowed = MARKS.get(block.language, ("",))
        assert block.mark in allowed, f"{block.page}: ```{block.language} {block.mark}"
        if not block.language:
            assert not re.search(r"^(ss-lens|python|make|import|from) ", block.text, re.M), block


def test_no_command_that_takes_hours_is_shown_to_run() -> None:
    assert not [line for line in commands_to_run() if line.startswith("ss-lens paper")]


def looked_up(tree: ast.Module) -> dict[str, object]:
    """The names that a block imports from this project, and what they are."""
    found: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = import_module(node.module or "")
            found |= {
                alias.asname or alias.name: getattr(module, alias.name) for alias in node.names
            }
    return found


def check_python(block: Block) -> int:
    """Raise where a block names what does not exist, or an argument that is not taken.

    Returns:
        How many calls were checked.
    """
    tree = ast.parse(block.text)
    known = {"ss_lens": import_module("ss_lens"), **looked_up(tree)}
    checked = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, called = node.func, None
        if isinstance(name, ast.Name):
            called = known.get(name.id)
        elif isinstance(name, ast.Attribute) and getattr(name.value, "id", None) in known:
            called = getattr(known[name.value.id], name.attr)
        if not getattr(called, "__module__", "").startswith(("ss_lens", "analyses")):
            continue
        given = {word.arg: None for word in node.keywords if word.arg}
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if not starred:
            inspect.signature(called).bind_partial(*[None] * len(node.args), **given)
            checked += 1
    return checked


def test_every_other_python_block_names_what_there_is() -> None:
    checked = [check_python(b) for b in BLOCKS if b.language == "python" and b.mark]
    assert checked
    assert sum(checked) >= 8


@pytest.mark.parametrize(
    "code",
    [
        "model = ss_lens.load_modle('x')",
        "ss_lens.RotateBy(angle=90)",
        "from ss_lens.judges import Solomon",
        "from ss_lens.judges import EndpointJudge\nEndpointJudge(modle='x')",
        "with ss_lens.steer(model, calibration, operator, position=1): pass",
        "print('unclosed'",
    ],
)
def test_python_that_would_fail_is_found_without_a_run(code: str) -> None:
    with pytest.raises((TypeError, AttributeError, ImportError, SyntaxError)):
        check_python(Block("", "python", "not-run", code))


def test_every_yaml_block_is_a_sweep() -> None:
    whole = [yaml.safe_load(b.text) for b in BLOCKS if b.language == "yaml" and not b.mark]
    parts = [yaml.safe_load(b.text) for b in BLOCKS if b.language == "yaml" and b.mark == "part"]
    assert whole
    for config in whole:
        SweepConfig(**config)
        for part in parts:
            SweepConfig(**config, **part)


def test_every_behaviour_that_is_shown_is_one(tmp_path: Path) -> None:
    shown = [b for b in BLOCKS if b.language == "yaml" and b.mark.startswith("behaviour")]
    assert {b.mark for b in shown} == {"behaviour", "behaviour-part"}
    rows = [
        {"question": f"Is {n} one?", **dict(zip(KEYS[1:], ("Yes", "No"), strict=True))}
        for n in "12"
    ]
    (tmp_path / "high-discount-rate.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for block in shown:
        (tmp_path / "shown.yaml").write_text(block.text, "utf-8")
        assert load_behaviour(tmp_path / "shown.yaml").scored_by


def test_the_pictures_of_the_readme_are_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).exists(), picture


def test_every_link_between_pages_leads_to_a_file() -> None:
    """As the repository lies on disk; the strict build checks the same for the site."""
    links = [
        (page, target)
        for page, text in pages().items()
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text)
    ]
    assert len(links) >= 50
    for page, target in links:
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
