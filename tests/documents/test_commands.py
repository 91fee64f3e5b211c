"""Every shell command of the README and of the documentation runs, or is checked without a run."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from ss_lens.experiments.ablations.variants import FULL, VARIANTS
from tests.documents.pages import commands_to_check, commands_to_run
from tests.documents.readme import ROOT, in_small, run_here, run_in, write_small_copies

# One through each of the two doors, the console script and `python -m`: as the reader runs them.
IN_A_PROCESS_OF_ITS_OWN = ("ss-lens steer", "python -m analyses runs/refusal")
# One of each kind: the operator, the sites, and the labels, which may leave no site to steer.
SOME_VARIANTS = (FULL, "rotate_to (SAS)", "random sites", "shuffled labels, own sites")
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
def test_every_shell_command_that_is_shown_to_run_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At a small size; the ablation with four variants, as the notebook's test computes all."""
    write_small_copies(tmp_path)
    monkeypatch.chdir(tmp_path)
    some = {name: VARIANTS[name] for name in SOME_VARIANTS}
    monkeypatch.setattr("ss_lens.experiments.ablations.variants.VARIANTS", some)
    ran, apart = [], [*IN_A_PROCESS_OF_ITS_OWN]
    for line in commands_to_run():
        if line.startswith("make"):
            continue
        command = in_small(line)
        door = next((start for start in apart if line.startswith(start)), None)
        if door is not None:
            done = run_in(tmp_path, command)
            code, printed = done.returncode, done.stdout + done.stderr
            apart.remove(door)
        else:
            code = run_here(command, monkeypatch)
            printed = "".join(capfd.readouterr())
        assert code == 0, f"{command}\n{printed}"
        ran.append(line)
    assert len(ran) >= 16
    assert not apart


def check_words(verbs: typer.Typer, words: list[str]) -> None:
    """Parse the words as the command line would, without running anything.

    A verb without options is mentioned, not shown to run, so it may lack those that it requires.
    """
    command = typer.main.get_command(verbs)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    if words:
        command.make_context("command", words)


def check_command(line: str) -> None:
    """Raise where a command names what does not exist, or an option that it does not take."""
    words = shlex.split(line)
    if words[0] == "ss-lens":
        from ss_lens.cli.main import app

        check_words(app, words[1:])
    elif words[:2] == ["python", "-m"]:
        place = ROOT / words[2].replace(".", "/")
        name = f"{words[2]}.__main__" if place.is_dir() else words[2]
        assert find_spec(name) is not None, f"there is no {name}"
        if name.startswith("analyses"):
            alone = typer.Typer()
            alone.command()(import_module(name).main)
            check_words(alone, words[3:])
    elif words[0] == "make":
        done = run_in(ROOT, f"make --dry-run {words[1]}")
        assert done.returncode == 0, done.stderr
    elif words[:2] == ["pip", "install"]:
        (extras,) = re.findall(r"^ss_lens\[(.*)\]$", words[2])
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", PROJECT, flags=re.MULTILINE), extra
    else:
        assert words[:2] == ["inspect", "eval"], line
        from ss_lens.integrations.inspect.provider import MODEL_ARGUMENTS

        named = {words[i + 1].split("=")[0] for i, word in enumerate(words) if word == "-M"}
        assert named <= {*MODEL_ARGUMENTS}, named


def test_every_other_command_takes_the_options_that_it_is_shown_with() -> None:
    lines = commands_to_check()
    for line in lines:
        check_command(line)
    assert len(lines) >= 20


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("ss-lens run --angels 0,180", "--angels"),
        ("ss-lens frobnicate --json", "frobnicate"),
        ("ss-lens store frobnicate --json", "frobnicate"),
        ("ss-lens steer 'Bake bread.'", "angle"),
        ("python -m analyses.budget --steps 30", "--steps"),
        ("python -m analyses.frobnicate", "frobnicate"),
        ("make frobnicate", "frobnicate"),
        ('pip install "ss_lens[frobnicate]"', "frobnicate"),
        ("inspect eval task.py --model ss_lens/smollm2-135m -M angel_deg=120", "angel_deg"),
    ],
)
def test_a_command_that_would_fail_is_found_without_a_run(line: str, named: str) -> None:
    with pytest.raises(Exception, match=named):
        check_command(line)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("ss-lens datasets --json", 0),
        ("ss-lens steer 'Bake bread.' --angle nan", 2),
        ("ss-lens frobnicate", 2),
        ("python -m analyses nowhere", 2),
        ("python -m analyses.confounds --help", 0),
    ],
)
def test_a_command_ends_here_as_it_ends_in_a_process_of_its_own(
    command: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(command, monkeypatch) == code
