"""Each verb does what the library does, and no work twice."""

from __future__ import annotations

from pathlib import Path

import pytest

import ss_lens
from ss_lens.models import forward
from ss_lens.models.chat import ChatFormat
from tests.cli.command import CommandLine, assert_one_clear_line, only_errors


def test_capture_is_served_from_the_store_the_second_time(
    ss: CommandLine, llama: Path, data: Path
) -> None:
    command = ("capture", "--model", llama, "--dataset", data, "--json")
    first, second = ss(*command), ss(*command)
    assert first.code == second.code == 0
    assert first.json == second.json
    assert first.json["positive_prompts"] == first.json["negative_prompts"] == 12
    assert (first.json["sites"], first.json["d_model"]) == (9, 32)
    assert "captured 1 of 1 shards" in first.err
    assert "nothing captured" in second.err
    assert "nothing captured" not in first.err
    smaller = ss(*command, "--streams", "ln1_out, resid_mid", "--position", "mean", "--limit", "4")
    assert smaller.json["sites"] == 6
    assert smaller.json["positive_prompts"] == 4
    assert first.json["key"] in ss("capture", "--model", llama, "--dataset", data).out


def test_calibrate_saves_what_steer_uses(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "deep" / "calibration"
    options = ("--model", llama, "--dataset", data, "--rule", "uniform")
    made = ss("calibrate", *options, "--out", saved, "--json")
    assert made.code == 0
    assert made.json["saved"] == str(saved)
    assert made.json["sites"] == 6
    assert made.json["without_a_direction"] == ["L0.ln1_out"]
    assert len(made.json["steered_sites_by_rule_uniform"]) == 6

    asked = ("w9 w70", "--model", llama, "--max-new-tokens", "5", "--json")
    plain = ss("generate", *asked).json
    assert plain["prompt"] == "w9 w70"
    from_saved = ss("steer", *asked, "--angle", "180", "--calibration", saved).json
    from_data = ss("steer", *asked, "--angle", "180", "--dataset", data, "--rule", "uniform").json
    assert from_saved == from_data
    assert from_saved["angle_deg"] == 180
    assert from_saved["response"] != plain["response"]
    unsteered = ss("steer", *asked, "--angle", "-360", "--calibration", saved).json
    assert unsteered["response"] == plain["response"]
    assert ss("generate", *asked[:-1]).out.strip() == plain["response"]


def test_calibrating_on_other_streams_uses_them(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--model", llama, "--dataset", data, "--rule", "uniform", "--out", tmp_path / "c")
    made = ss("calibrate", *options, "--streams", "resid_pre,resid_post", "--json").json
    assert ".resid_p" in made["direction_site"]
    assert made["sites"] == 6


def test_the_main_job_runs_and_captures_nothing_the_second_time(
    ss: CommandLine, main_job: tuple[object, ...], tmp_path: Path
) -> None:
    first, second = ss(*main_job, "--json"), ss(*main_job, "--json")
    assert first.code == second.code == 0, first.err
    assert first.json == second.json
    assert "captured 1 of 1 shards" in first.err
    assert "nothing captured" in second.err
    scores = first.json["scores"]
    assert [row["angle_deg"] for row in scores] == [0, 90]
    for row in scores:
        assert row["n_positive"] == row["n_negative"] == 3
        assert 0 <= row["refusal_positive_low"] <= row["refusal_positive"]
        assert row["repetition"] is None  # three tokens are too short for it
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.json", "calibration", "answers", "responses.csv", "scores.csv"} <= names
    table = ss(*main_job)
    assert table.code == 0
    assert "90°" in table.out
    assert "direction site" in table.out
    assert f"saved in {tmp_path / 'run'}" in table.out


def test_the_main_job_computes_no_answer_twice(
    ss: CommandLine, main_job: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ss(*main_job).code == 0

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(forward, "run", never)
    assert ss(*main_job).code == 0


def test_what_enters_the_template_changes_what_is_captured_and_answered(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    """The tiny template does not read the date, so that changes nothing and is kept."""
    where = ("--model", llama, "--dataset", data)
    keys = [
        ss("capture", *where, *options, "--json").json["key"]
        for options in ((), ("--system", "w30 w31"), ("--date", "2025-01-31"))
    ]
    assert keys[0] == keys[2] != keys[1]
    asked = ("generate", "w9 w70", "--model", llama, "--max-new-tokens", "5", "--json")
    told = ss(*asked, "--system", "w30 w31").json["response"]
    model = ss_lens.load_model(llama)
    turns = [{"role": "system", "content": "w30 w31"}, {"role": "user", "content": "w9 w70"}]
    assert told == ss_lens.generate(model, [turns], max_new_tokens=5)[0]
    out = tmp_path / "c"
    ss("calibrate", *where, "--rule", "uniform", "--system", "w30 w31", "--out", out)
    assert ss_lens.Calibration.load(out).spec.chat == ChatFormat(system="w30 w31")
    steered = ("steer", *asked[1:], "--angle", "360", "--calibration", out)
    assert ss(*steered, "--system", "w30 w31").json["response"] == told
    refused = ss(*asked, "--template-argument", "enable_thinking=false")
    assert_one_clear_line(refused, "does not read the argument 'enable_thinking'")


def test_another_calibration_is_replaced_on_request_only(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    where = ("calibrate", "--model", llama, "--dataset", data, "--out", tmp_path / "c")
    assert ss(*where, "--rule", "uniform").code == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    assert ss(*where, "--rule", "uniform").code == 0  # identical: nothing to replace
    refused = ss(*where, "--rule", "uniform", "--streams", "resid_post")
    assert_one_clear_line(only_errors(refused), "holds another calibration", "--overwrite")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()} == written
    other = ss(*where, "--rule", "uniform", "--streams", "resid_post", "--overwrite", "--json")
    assert ".resid_post" in other.json["direction_site"]
    assert str(ss_lens.Calibration.load(tmp_path / "c").direction_site).endswith(".resid_post")


def test_ablate_hands_on_its_workers(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run_ablations(config: ss_lens.AblationConfig, folder: Path) -> None:
        asked.append((config.workers, folder))
        raise ss_lens.UserError("not run here.")

    monkeypatch.setattr(ss_lens, "run_ablations", run_ablations, raising=False)
    options = ("--model", llama, "--dataset", data, "--dev", "2", "--test", "2")
    found = ss("ablate", *options, "--workers", "2", "--out", tmp_path / "out")
    assert_one_clear_line(found, "not run here.")
    assert asked == [(2, tmp_path / "out")]
