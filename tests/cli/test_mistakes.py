"""A mistake is one clear line and exit code 2, and costs nothing that was there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import ss_lens
from ss_lens.cli import console, main as cli
from tests.cli.command import CommandLine, assert_one_clear_line, only_errors


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
        (
            ("capture", "--position", "0"),
            ("position must be a negative token index, 'mean' or 'prompt_mean'",),
        ),
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
    without = arguments[0] == "generate" or "--calibration" in arguments
    dataset = () if without else ("--dataset", data)
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


# --- before a model is loaded


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model would be loaded."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr(ss_lens, "load_model", never)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("run", "--rule", "best"), ("unknown rule 'best'",)),
        (("run", "--angles", "0,x"), ("is not a list of numbers",)),
        (("run", "--test", "99"), ("cannot split the 12 positive prompts", "test=99")),
        (("run", "--dataset", "gone.jsonl"), ("there is no file gone.jsonl",)),
        (("run", "--max-new-tokens", "0"), ("max_new_tokens must be",)),
        (("ablate", "--test", "99"), ("cannot split the 12 positive prompts", "test=99")),
        (("ablate", "--draws", "0"), ("draws must be a whole number from 1 on",)),
        (("ablate", "--angles", "0,x"), ("is not a list of numbers",)),
        (("ablate", "--date", "today"), ("date must be written like 2024-07-26; got 'today'",)),
        (("capture", "--streams", "ln3_out"), ("unknown stream 'ln3_out'",)),
        (("capture", "--position", "0"), ("position must be a negative token index",)),
        (("capture", "--position", "last"), ("--position 'last' is neither",)),
        (("capture", "--limit", "0"), ("at least one prompt per class",)),
        (("capture", "--date", "today"), ("date must be written like", "'today'")),
        (("capture", "--system", " "), ("the system prompt is blank",)),
        (("capture", "--template-argument", "thinking"), ("has no value", "thinking")),
        (("capture", "--template-argument", "messages=1"), ("cannot be called 'messages'",)),
        (("calibrate", "--out", "x", "--rule", "best"), ("unknown rule 'best'",)),
        (("calibrate", "--out", "x", "--streams", "ln1_out,resid_pre"), ("calibrate them sep",)),
        (("calibrate", "--out", "x", "--dataset", "gone.csv"), ("there is no file gone.csv",)),
        (("calibrate", "--out", "."), ("names a folder by its place",)),
        (("calibrate", "--out", "/dev/null"), ("/dev/null", "is a device")),
        (("calibrate", "--out", "taken"), ("taken holds something that is not a calibration",)),
        (("steer", "w9", "--angle", "nan"), ("angle_deg must be finite; got nan",)),
        (("steer", "w9", "--angle", "1", "--rule", "best"), ("unknown rule 'best'",)),
        (("steer", " ", "--angle", "1"), ("prompt 0 is blank",)),
        (("steer", "w9", "--angle", "1", "--max-new-tokens", "0"), ("max_new_tokens must be",)),
        (("generate", " "), ("prompt 0 is blank",)),
        (("generate", "w9", "--max-new-tokens", "0"), ("max_new_tokens must be",)),
        (("generate", "w9", "--date", "2024-7-1"), ("date must be written like",)),
        (("generate", "w9", "--temperature", "-1"), ("temperature must be 0 or a positive",)),
        (("steer", "w9", "--angle", "1", "--temperature", "-1"), ("temperature must be 0 or",)),
        (("steer", "w9", "--operator", "RotateTo(angle=1)"), ("does not fit", "'angle'")),
        (("compare", "w9", "--operators", "rotate_by,turn"), ("unknown operator 'turn'",)),
        (("compare", "w9", "--operators", "rotate_by,,add"), ("have an empty name",)),
        (("compare", "w9", "--angles", ""), ("'' is not a list of numbers",)),
        (("compare", "w9", "--angles", "0,360"), ("angle 0 is given twice",)),
        (("run", "--angles", ",".join(map(str, range(4000)))), ("4,000 angles", "at most 3,600")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    ss: CommandLine,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    fragments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("kept")
    own = arguments[0] == "generate" or "--dataset" in arguments
    assert_one_clear_line(ss(*arguments, *(() if own else ("--dataset", data))), *fragments)
    assert (tmp_path / "taken").read_text() == "kept"


@pytest.mark.usefixtures("no_model")
def test_a_calibration_that_is_not_there_is_refused_before_a_model_is_loaded(
    ss: CommandLine,
) -> None:
    failed = ss("steer", "w9", "--angle", "1", "--calibration", "gone")
    assert_one_clear_line(failed, "there is no calibration at")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--rule", "site"), "--rule"),
        (("--dataset", "refusal"), "--dataset"),
        (("--dataset", "refusal", "--rule", "site"), "--dataset and --rule"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_saved_calibration_takes_neither_rule_nor_dataset(
    ss: CommandLine, options: tuple[str, ...], named: str
) -> None:
    """Not even the defaults, written out: they would have no effect."""
    failed = ss("steer", "w9", "--angle", "1", "--calibration", "c", *options)
    assert_one_clear_line(failed, f"--calibration is given beside {named}", "leave out")


@pytest.mark.parametrize("verb", ["run", "sweep", "ablate"])
def test_a_device_in_place_of_the_out_folder_is_one_line(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path, verb: str
) -> None:
    options = ("--model", llama, "--dataset", data, "--dev", "2", "--test", "3")
    if verb == "sweep":
        config = tmp_path / "sweep.yaml"
        config.write_text(
            f"grid:\n  - {{model: {llama}, dataset: {data}, angles_deg: [0]}}\n"
            "split: {dev: 2, test: 3, seed: 0}\nmax_new_tokens: 2\n"
        )
        options = (config,)
    failed = ss(verb, *options, "--out", "/dev/null")
    told = "/dev/null is a device, a pipe or a socket, where no folder can be; choose another"
    assert_one_clear_line(only_errors(failed), told)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("loop/x", "leads in a circle of symbolic links"),
        ("file/x", "is a file or below one"),
        ("new/" + "x" * 300, "is longer than the disk allows"),
        ("/proc/x", "cannot be made"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "calibrate"])
def test_an_out_folder_that_cannot_be_made_is_refused_before_a_model_is_loaded(
    ss: CommandLine, data: Path, tmp_path: Path, verb: str, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    sizes = ("--dev", "2", "--test", "3") if verb == "run" else ()
    failed = ss(verb, "--dataset", data, *sizes, "--out", tmp_path / place)
    assert_one_clear_line(failed, reason)
    assert not (tmp_path / "new").exists()
