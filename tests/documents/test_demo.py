"""The make targets of the README exist, and `make demo` shows what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.readme import BIN, ROOT, SMALL, run_in, shell_lines


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        done = run_in(ROOT, f"make --dry-run {target}")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.default_model
@pytest.mark.usefixtures("new_user")
def test_make_demo_runs_the_main_job_and_draws_its_figures(tmp_path: Path) -> None:
    """With this interpreter's environment, whoever made it: its set-up counts as done."""
    out, stamp = tmp_path / "run", tmp_path / "installed"
    stamp.touch()
    done = run_in(
        ROOT,
        f'make --no-print-directory demo MODEL=smollm2-135m-refusal BIN="{BIN}" STAMP="{stamp}" '
        f'RUN_DIR="{out}" RUN_FLAGS="{SMALL}"',
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "direction site" in done.stdout
    assert done.stdout.strip().endswith(f"Open {out}/report.html")
    assert (out / "report.html").read_text("utf-8").startswith("<!doctype html>")
    for name in ("dial", "sign_agreement", "norm_growth", "cosine_heatmap"):
        assert (out / "figures" / f"{name}.html").stat().st_size > 1e6


def test_a_run_of_no_tests_is_a_failure(tmp_path: Path) -> None:
    """As pytest ends it, and as `make` hands it on."""
    (tmp_path / "test_nothing.py").write_text("")
    done = run_in(tmp_path, f'"{BIN / "python"}" -m pytest -n 2 --dist loadfile test_nothing.py')
    assert done.returncode == 5, done.stdout + done.stderr
