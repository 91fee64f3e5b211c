"""Every shell command of the README runs, in the order in which it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ss_lens.experiments.ablation import FULL, VARIANTS
from tests.documents.readme import in_small, run_here, run_in, shell_lines, write_small_copies

# One through each of the two doors, the console script and `python -m`: as the reader runs them.
IN_A_PROCESS_OF_ITS_OWN = ("ss-lens steer", "python -m analyses runs/refusal")
# One of each kind: the operator, the sites, and the labels, which may leave no site to steer.
SOME_VARIANTS = (FULL, "rotate_to (SAS)", "random sites", "shuffled labels, own sites")


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
def test_every_shell_command_of_the_readme_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At a small size; the ablation with four variants, as the notebook's test computes all."""
    write_small_copies(tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    some = {name: VARIANTS[name] for name in SOME_VARIANTS}
    monkeypatch.setattr("ss_lens.experiments.ablation.VARIANTS", some)
    ran, apart = [], []
    for line in shell_lines():
        if line.startswith("make"):
            continue
        command = in_small(line)
        if line.startswith(IN_A_PROCESS_OF_ITS_OWN):
            done = run_in(tmp_path, command)
            code, printed = done.returncode, done.stdout + done.stderr
            apart.append(line)
        else:
            code = run_here(command, monkeypatch)
            printed = "".join(capfd.readouterr())
        assert code == 0, f"{command}\n{printed}"
        ran.append(line)
    assert len(ran) >= 16
    assert len(apart) == len(IN_A_PROCESS_OF_ITS_OWN)


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
