"""The command line follows a behaviour, takes prompts from two files, and compares operators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import CommandLine, assert_one_clear_line, only_errors


@pytest.fixture
def pirate(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "pirate.yaml"
    path.write_text(f"dataset: {data}\nopenings: {{positive: [A, B], negative: [x, Z]}}\n")
    return path


def test_the_main_job_takes_a_behaviour(
    ss: CommandLine, tiny_folders: dict[str, Path], pirate: Path, tmp_path: Path
) -> None:
    where = ("--model", tiny_folders["qwen2"], "--behaviour", pirate, "--out", tmp_path / "run")
    sizes = ("--dev", 2, "--test", 3, "--max-new-tokens", 3, "--draws", 1)
    done = ss("run", *where, *sizes, "--rule", "uniform", "--angles", "0,90")
    assert done.code == 0, done.err
    assert "behaviour pirate, on" in done.err
    assert "the default for" not in done.err  # a behaviour brings its prompts
    assert "mean pirate score in nats (opening mass)" in done.out
    assert "refus" not in done.out
    assert (tmp_path / "run" / "report.html").exists() or "report" not in done.out
    again = ss("run", *where, *sizes, "--rule", "uniform", "--angles", "0,90", "--json")
    assert {"behaviour_score", "opening_mass"} <= {*again.json["dial"][0]}


def test_prompts_of_two_files_are_those_of_one(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for label in ("positive", "negative"):
        texts = [row["prompt"] for row in rows if row["class"] == label]
        (tmp_path / f"{label}.txt").write_text("\n".join(texts))
    sides = ("--positive", tmp_path / "positive.txt", "--negative", tmp_path / "negative.txt")
    one = ss("capture", "--model", llama, "--dataset", data, "--json").json
    two = ss("capture", "--model", llama, *sides, "--json").json
    assert two["positive_prompts"] == one["positive_prompts"]
    renamed = tmp_path / "renamed.jsonl"
    named = {"positive": "Toxic", "negative": "clean"}
    lines = [json.dumps({**row, "class": named[row["class"]]}) for row in rows]
    renamed.write_text("\n".join(lines))
    values = ("--class-values", "toxic=positive, clean=negative")
    third = ss("capture", "--model", llama, "--dataset", renamed, *values, "--json").json
    assert third["positive_prompts"] == one["positive_prompts"]


def test_operators_stand_side_by_side_and_unsteered_is_first(
    ss: CommandLine, llama: Path, data: Path, tmp_path: Path
) -> None:
    saved, small = tmp_path / "saved", ("--model", llama, "--json", "--max-new-tokens", 4)
    methods = ("--plane", "RandomSecond(seed=1)", "--choice", "Consensus()")
    ss(
        "calibrate",
        "--model",
        llama,
        "--dataset",
        data,
        "--rule",
        "uniform",
        "--out",
        saved,
        *methods,
    )
    asked = ("w9 w70", *small, "--calibration", saved)
    options = ("--angles", "0,180", "--operators", "rotate_by,RotateTo,add,ablate")
    rows = ss("compare", *asked, *options).json
    assert rows[0]["operator"] == "unsteered"
    assert rows[0]["response"] == ss("generate", "w9 w70", *small).json["response"]
    names = [row["operator"].partition("(")[0] for row in rows]
    assert names == ["unsteered", *["RotateBy"] * 2, *["RotateTo"] * 2, "Add", "Add", "Ablate"]
    assert rows[1]["response"] == rows[0]["response"]  # 0 degrees of a relative turn
    turned = ss("steer", *asked, "--operator", "RotateTo(angle_deg=180)").json
    assert turned["response"] == rows[4]["response"]
    last = ss("steer", *asked, "--angle", 180, "--positions", "LastPrompt(k=1)")
    assert last.code == 0
    assert last.json["response"] != rows[2]["response"]
    drawn = ("--temperature", 2, "--seed")
    first, again, other = (
        ss("steer", *asked, "--angle", 180, *drawn, seed).json["response"] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("run", "--behaviour", "langage"), ("unknown behaviour 'langage'", "language")),
        (("ablate", "--behaviour", "gone.yaml"), ("there is no behaviour gone.yaml",)),
        (("steer", "w9", "--angle", "1", "--operator", "Ablate()"), ("got both",)),
        (("steer", "w9", "--operator", "Turn()"), ("unknown operator 'Turn'",)),
        (("steer", "w9", "--angle", "1", "--positions", "Last()"), ("unknown positions 'Last'",)),
        (("capture", "--positive", "a.txt", "--dataset", "b"), ("--dataset", "no effect")),
        (("capture", "--class-values", "a=positive"), ("--class-values got no --dataset",)),
        (("capture", "--dataset", "refusal", "--class-values", "a"), ("expected VALUE=positive",)),
        (
            ("capture", "--dataset", "refusal", "--class-values", "a=positive,A=negative"),
            ("maps 'A' to positive and to negative", "keep one"),
        ),
        (
            ("capture", "--dataset", "refusal", "--class-values", "a=yes"),
            ("must be one of positive, negative; got 'yes'",),
        ),
        (
            ("capture", "--positive", "a.txt"),
            ("the positive prompts are given without negative ones", "--negative"),
        ),
        (
            ("run", "--negative", "a.txt"),
            ("the negative prompts are given without positive ones", "--positive"),
        ),
        (
            ("steer", "w9", "--angle", "1", "--calibration", "c", "--class-values", "a=positive"),
            ("--class-values", "no effect"),
        ),
        (("calibrate", "--out", "x", "--plane", "PC9()"), ("unknown plane 'PC9'",)),
        (("compare", "w9", "--positions", "Last()"), ("unknown positions 'Last'",)),
        (("compare", "w9", "--calibration", "c", "--dataset", "d"), ("no effect",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistake_is_one_line(
    ss: CommandLine, arguments: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    assert_one_clear_line(only_errors(ss(*arguments)), *fragments)


@pytest.mark.filterwarnings("default:the calibration rests on")
def test_a_class_of_one_prompt_is_warned_of_in_one_line(
    ss: CommandLine, llama: Path, tmp_path: Path
) -> None:
    for label, text in (("positive", "w9 w70"), ("negative", "w11")):
        (tmp_path / f"{label}.txt").write_text(text)
    sides = ("--positive", tmp_path / "positive.txt", "--negative", tmp_path / "negative.txt")
    where = ("--rule", "uniform", "--out", tmp_path / "c")
    done = ss("calibrate", "--model", llama, *sides, *where)
    assert done.code == 0, done.err
    (told,) = [x for x in done.err.splitlines() if "rests on" in x]
    assert told.startswith("warning: the calibration rests on 1 + 1 prompts")
    assert "steps.py" not in done.err
