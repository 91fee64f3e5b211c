"""The command line: every verb, every exit code, one line for a mistake, and Ctrl-C."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ss_lens import ContrastiveDataset
from ss_lens.cli import console, main as cli
from ss_lens.models import forward
from ss_lens.models.adapters import EMBEDDED_ADAPTERS
from ss_lens.models.load import PAPER_MODELS
from ss_lens.models.sources import WHEEL_MODELS

VERBS = ("run", "capture", "calibrate", "steer", "generate", "models", "datasets", "store")


class Finished(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


CommandLine = Callable[..., Finished]


@pytest.fixture
def ss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """``ss-lens`` in this process, with the exit code that a shell would see."""
    logger = logging.getLogger("ss_lens")
    handlers, level = list(logger.handlers), logger.level
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["ss-lens", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        logger.handlers[:] = handlers
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return Finished(code or 0, *capsys.readouterr())

    yield run
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def llama(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["llama"]


@pytest.fixture
def data(tiny_data: ContrastiveDataset, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    rows = [{"prompt": p, "class": "positive"} for p in tiny_data.positive]
    rows += [{"prompt": p, "class": "negative"} for p in tiny_data.negative]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def main_job(llama: Path, data: Path, tmp_path: Path) -> tuple[object, ...]:
    """The main job at its smallest: 12 prompts per class, 2 angles, 3 new tokens."""
    where = ("--model", llama, "--dataset", data, "--out", tmp_path / "run")
    sizes = ("--dev", 2, "--test", 3, "--max-new-tokens", 3)
    return ("run", *where, *sizes, "--rule", "uniform", "--angles", "0,90")


def only_errors(finished: Finished) -> Finished:
    """Without the lines in which the store says what it did before the mistake showed."""
    kept = [x for x in finished.err.splitlines() if not x.startswith(("captured ", "served "))]
    return finished._replace(err="\n".join(kept))


def assert_one_clear_line(finished: Finished, *fragments: str) -> None:
    assert finished.code == 2, finished.err
    assert "Traceback" not in finished.err
    lines = finished.err.strip().splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) == 1, finished.err
    assert finished.out == ""
    for fragment in fragments:
        assert fragment in lines[-1]


# --- answering at once ---------------------------------------------------------------------------

HELP = """
import sys
from ss_lens.cli.main import main
sys.argv = ["ss-lens", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "transformer_lens", "datasets", "pandas", "numpy"}
print("LOADED", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [("--help",), *((verb, "--help") for verb in VERBS), ("store", "rm", "--help"), ("datasets",)],
    ids=" ".join,
)
def test_help_answers_without_loading_torch(arguments: tuple[str, ...]) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("LOADED []\n")
    assert "Usage:" in done.stdout or arguments == ("datasets",)
    assert time.monotonic() - start < 10  # importing torch and its company takes longer


def test_help_lists_every_verb(ss: CommandLine) -> None:
    finished = ss("--help")
    assert finished.code == 0
    assert all(f" {verb} " in finished.out for verb in VERBS)


def test_models_are_listed(ss: CommandLine) -> None:
    listed = ss("models", "--json").json
    assert {row["name"] for row in listed} == {*EMBEDDED_ADAPTERS, *WHEEL_MODELS, *PAPER_MODELS}
    assert {"name", "source", "from"} == set(listed[0])
    table = ss("models")
    assert table.code == 0
    assert all(row["name"] in table.out and row["source"] in table.out for row in listed)


def test_datasets_are_listed(ss: CommandLine) -> None:
    listed = {row["name"]: row for row in ss("datasets", "--json").json}
    assert set(listed) == {"refusal", "sentiment"}
    assert listed["refusal"]["positive"] >= 96
    assert "refusal" in ss("datasets").out


# --- the verbs -----------------------------------------------------------------------------------


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


def test_the_store_is_listed_verified_and_emptied(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    assert ss("store", "ls", "--json").json == []
    key = ss("capture", "--model", llama, "--dataset", data, "--json").json["key"]
    (row,) = ss("store", "ls", "--json").json
    assert row["key"] == key[:12]
    assert (row["prompts"], row["sites"], row["shards"]) == ("12 + 12", 9, "1/1")
    assert key[:12] in ss("store", "ls").out
    assert ss("store", "verify", "--json").json == {key: []}
    whole = ss("store", "verify")
    assert whole.code == 0
    assert f"{key[:12]}: whole" in whole.out

    (shard,) = (tmp_path / "home").rglob("shard-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5])
    damaged = ss("store", "verify", "--json")
    assert damaged.code == 1
    assert damaged.json == {key: [f"{shard.name} is damaged"]}
    shard.write_bytes(b"")
    assert ss("store", "verify", "--json").json == {key: [f"{shard.name} is damaged"]}
    shard.unlink()
    missing = ss("store", "verify")
    assert missing.code == 1
    assert f"{shard.name} is missing" in missing.out

    assert_one_clear_line(ss("store", "rm", "zzz"), "0 sets in", "start with 'zzz'", "store ls")
    removed = ss("store", "rm", key[:8])
    assert removed.out.strip() == f"removed {key[:12]}"
    assert ss("store", "ls", "--json").json == []


def test_an_empty_key_removes_nothing(ss: CommandLine, llama: Path, data: Path) -> None:
    """As from `ss-lens store rm $KEY` with the variable unset."""
    ss("capture", "--model", llama, "--dataset", data)
    assert_one_clear_line(ss("store", "rm", ""))
    assert len(ss("store", "ls", "--json").json) == 1


def test_a_set_of_another_format_can_be_removed_as_its_error_says(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    key = ss("capture", "--model", llama, "--dataset", data, "--json").json["key"]
    (manifest,) = (tmp_path / "home").rglob("manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    failed = ss("capture", "--model", llama, "--dataset", data)
    assert_one_clear_line(failed, "store format 99", f"ss-lens store rm {key[:12]}")
    assert ss("store", "rm", key[:12]).code == 0
    assert ss("capture", "--model", llama, "--dataset", data).code == 0


def test_a_set_with_a_damaged_manifest_can_be_removed(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    key = ss("capture", "--model", llama, "--dataset", data, "--json").json["key"]
    (manifest,) = (tmp_path / "home").rglob("manifest.json")
    manifest.write_text(manifest.read_text()[:-9])
    assert ss("store", "rm", key[:12]).code == 0
    assert ss("capture", "--model", llama, "--dataset", data).code == 0


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


# --- users' mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--model", "smollm"), ("unknown model 'smollm'", "did you mean 'smollm2-135m'?")),
        (("--model", "nowhere.gguf"), ("there is no file nowhere.gguf",)),
        (("--dataset", "nowhere.jsonl"), ("there is no file nowhere.jsonl",)),
        (("--dataset", "refusals"), ("'refusals' is neither an embedded dataset",)),
        (("--rule", "best"), ("unknown rule 'best'", "site, block, uniform")),
        (("--angles", "0,x"), ("--angles '0,x' is not a list of numbers like 0,90,180",)),
        (("--angles", ""), ("is not a list of numbers",)),
        (("--angles", "0,nan"), ("angle_deg must be finite", "nan")),
        (("--angles", "1e999"), ("angle_deg must be finite", "inf")),
        (("--angles", "90,90"), ("90",)),
        (("--device", "abacus"), ("device 'abacus' is not available",)),
        (("--dtype", "int4"), ("unknown dtype 'int4'", "float32, bfloat16, float16")),
        (("--test", "99"), ("cannot split the 12 positive prompts", "test=99")),
        (("--max-new-tokens", "0"), ("max_new_tokens must be at least 1", "0")),
    ],
    ids=lambda value: "=".join(value)[:40],
)
def test_a_mistake_in_the_main_job_is_one_line(
    ss: CommandLine,
    main_job: tuple[object, ...],
    tmp_path: Path,
    options: tuple[str, str],
    fragments: tuple[str, ...],
) -> None:
    failed = ss(*main_job, *options)
    assert_one_clear_line(only_errors(failed), *fragments)
    assert not (tmp_path / "run").exists()  # so that the corrected command is not refused


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("steer", "w9", "--angle", "nan"), ("angle_deg must be finite; got nan",)),
        (("steer", "w9", "--angle", "inf"), ("angle_deg must be finite; got inf",)),
        (("capture", "--streams", "ln3_out"), ("unknown stream 'ln3_out'", "resid_pre, ln1_out")),
        (("capture", "--streams", "ln1_post_out"), ("does not exist on this architecture",)),
        (("capture", "--position", "last"), ("--position 'last' is neither",)),
        (("capture", "--position", "0"), ("position must be a negative token index or 'mean'",)),
        (("capture", "--position", "-40"), ("lies before the start",)),
        (("capture", "--limit", "0"), ("at least one prompt per class",)),
        (("calibrate", "--out", "x", "--rule", "all"), ("unknown rule 'all'",)),
        (("calibrate", "--out", "x", "--streams", "ln1_out,resid_pre"), ("calibrate them separ",)),
        (("generate", " "), ("prompt 0 is blank",)),
        (("generate", "w9 " * 80), ("the context of", "is 64", "Shorten it")),
        (("generate", "w9", "--max-new-tokens", "60"), ("and 60 new ones",)),
        (("steer", "w9", "--angle", "1", "--calibration", "gone"), ("there is no calibration at",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistake_in_the_other_verbs_is_one_line(
    ss: CommandLine,
    llama: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    fragments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = () if arguments[0] == "generate" else ("--dataset", data)
    failed = ss(*arguments, "--model", llama, *dataset)
    assert_one_clear_line(only_errors(failed), *fragments)
    assert not (tmp_path / "x").exists()


def test_a_saved_calibration_named_by_its_file_is_one_line(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--model", llama, "--dataset", data, "--rule", "uniform")
    assert ss("calibrate", *options, "--out", tmp_path / "c").code == 0
    file = tmp_path / "c" / "calibration.json"
    failed = ss("steer", "w9", "--angle", "1", "--model", llama, "--calibration", file)
    assert_one_clear_line(failed, "calibration")


def test_a_calibration_of_another_model_is_one_line(
    ss: CommandLine, tiny_folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    options = ("--dataset", data, "--rule", "uniform", "--out", tmp_path / "c")
    assert ss("calibrate", "--model", tiny_folders["llama"], *options).code == 0
    failed = ss(
        "steer", "w9", "--angle", "1", "--model", tiny_folders["gpt2"], "--calibration",
        tmp_path / "c",
    )  # fmt: skip
    assert_one_clear_line(failed, "was made on", "Calibrate again on this model")


def test_the_folder_of_another_run_is_refused_and_kept(
    ss: CommandLine, main_job: tuple[object, ...], tmp_path: Path
) -> None:
    first = ss(*main_job, "--json").json
    before = (tmp_path / "run" / "responses.csv").read_bytes()
    failed = ss(*main_job, "--angles", "0,45")
    assert_one_clear_line(only_errors(failed), "differs in config", "choose another --out")
    assert (tmp_path / "run" / "responses.csv").read_bytes() == before
    assert ss(*main_job, "--json").json == first


@pytest.mark.parametrize("verb", ["run", "calibrate"])
def test_a_folder_of_something_else_is_refused_and_kept(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    options = ("--model", llama, "--dataset", data, "--rule", "uniform", "--out", tmp_path / "mine")
    small = ("--dev", "2", "--test", "3", "--max-new-tokens", "2") if verb == "run" else ()
    failed = ss(verb, *options, *small)
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert_one_clear_line(only_errors(failed), str(tmp_path / "mine"))


@pytest.mark.parametrize("verb", ["run", "calibrate"])
def test_a_file_in_place_of_the_out_folder_is_refused_and_kept(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "taken").write_text("kept")
    options = (
        "--model",
        llama,
        "--dataset",
        data,
        "--rule",
        "uniform",
        "--out",
        tmp_path / "taken",
    )
    small = ("--dev", "2", "--test", "3", "--max-new-tokens", "2") if verb == "run" else ()
    failed = ss(verb, *options, *small)
    assert (tmp_path / "taken").read_text() == "kept"
    assert_one_clear_line(only_errors(failed), "taken")


@pytest.mark.parametrize(
    "arguments", [("steer", "w9"), ("steer", "w9", "--angle", "x"), ("run", "--nope"), ("fly",)]
)
def test_a_command_that_cannot_be_parsed_exits_with_2(
    ss: CommandLine, arguments: tuple[str, ...]
) -> None:
    failed = ss(*arguments)
    assert failed.code == 2
    assert "Traceback" not in failed.err
    assert "Usage: ss-lens" in failed.err


def test_a_defect_of_ours_is_a_traceback_and_not_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(console, "print_rows", broken)
    monkeypatch.setattr(sys, "argv", ["ss-lens", "datasets"])
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.main()


@pytest.mark.parametrize("text", [":fire: a[b] [red]c[/red] \\[d]", "[/oops] :x:", "x" * 300])
def test_answers_and_errors_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    console.line(text)
    assert capsys.readouterr().out == text + "\n"
    console.error(text)
    assert capsys.readouterr().err == f"error: {text}\n"
    console.print_rows(("column",), [(text[:60],)], as_json=False)
    assert text[:60].strip() in capsys.readouterr().out


# --- Ctrl-C --------------------------------------------------------------------------------------


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C in the middle of the model's pass number ``after``."""
    original, calls = forward.run, iter(range(10_000))

    def run(*arguments: Any, **options: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(forward, "run", run)


def test_ctrl_c_in_a_capture_exits_with_130_and_the_same_command_completes(
    ss: CommandLine,
    llama: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("ss_lens.activations.capture"), "SHARD_SIZE", 8)
    command = ("capture", "--model", llama, "--dataset", data)
    with monkeypatch.context() as patch:
        interrupting(patch, after=3)
        stopped = ss(*command)
    assert stopped.code == 130
    assert "Traceback" not in stopped.err
    assert "the same command goes on from there" in stopped.err
    shards = list((tmp_path / "home").rglob("shard-*.safetensors"))
    assert 0 < len(shards) < 3
    assert not [p for p in (tmp_path / "home").rglob(".*") if p.is_dir()]  # nothing half-written
    finished = ss(*command)
    assert finished.code == 0
    assert f"captured {3 - len(shards)} of 3 shards" in finished.err


RUN_INTERRUPTIBLY = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in the background
from ss_lens.cli.main import main
main()
"""


def test_ctrl_c_in_the_main_job_exits_with_130_and_the_same_command_completes(
    ss: CommandLine, main_job: tuple[object, ...], tmp_path: Path
) -> None:
    command = [*map(str, main_job), "--dev", "1", "--test", "10", "--max-new-tokens", "40"]
    command += ["--angles", ",".join(map(str, range(0, 360, 12)))]
    answers = tmp_path / "run" / "answers"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_INTERRUPTIBLY, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (answers.is_dir() and list(answers.glob("[!.]*.json"))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-500:]
    assert "Traceback" not in err
    assert "interrupted; finished work is kept" in err
    assert not (tmp_path / "run" / "scores.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in answers.glob("[!.]*.json")}
    finished = ss(*command, "--json")
    assert finished.code == 0, finished.err
    assert len(finished.json["scores"]) == 30
    assert len(list(answers.iterdir())) == 4 > len(kept)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
