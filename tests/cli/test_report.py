"""`ss-lens report` finds whoever draws reports; `ss-lens run` ends with one."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from analyses.report import write_report
from ss_lens.cli import reports
from tests.cli.command import CommandLine, assert_one_clear_line
from tests.documents.readme import ROOT


def test_the_package_declares_the_door_that_the_command_line_looks_for() -> None:
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    value = "analyses.report:write_report"
    assert f'[project.entry-points."{reports.GROUP}"]\n{reports.NAME} = "{value}"' in declared
    assert EntryPoint(reports.NAME, value, reports.GROUP).load() is write_report


def test_a_run_ends_with_its_report_and_the_verb_makes_it_again(
    ss: CommandLine,
    main_job: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reports, "_writer", lambda: write_report)
    done = ss(*main_job)
    path = tmp_path / "run" / "report.html"
    assert done.out.rstrip().endswith(f"report: {path}")
    first = path.read_text("utf-8")
    assert ss(*main_job, "--json").json["report"] == str(path)
    again = ss("report", tmp_path / "run", "--out", tmp_path / "again.html")
    assert again.out.strip() == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text("utf-8") == first


def test_without_the_analyses_a_run_is_whole_and_the_verb_says_so_in_a_line(
    ss: CommandLine,
    main_job: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reports, "entry_points", lambda **_: ())
    done = ss(*main_job)
    assert done.code == 0
    assert "no report was written: the analyses" in done.err
    assert not (tmp_path / "run" / "report.html").exists()
    assert ss(*main_job, "--json").json["report"] is None
    refused = ss("report", tmp_path / "run")
    assert_one_clear_line(refused, "no report can be made", "Install the package again")


def test_a_folder_without_a_run_is_one_line(
    ss: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_writer", lambda: write_report)
    assert_one_clear_line(ss("report", tmp_path), "holds no run", "give a folder")
