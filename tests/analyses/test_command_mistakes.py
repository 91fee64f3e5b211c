"""What an analysis cannot do with its options is said before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import ss_lens
from analyses import output
from ss_lens import UserError
from ss_lens.behaviours.questions import KEYS


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr(ss_lens, "load_model", never)


def main_of(name: str) -> Callable[..., None]:
    return import_module(f"analyses.{name}.__main__").main


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gating", {"rate": 0.01}, "16 negative dev prompts cannot state .* at least 99"),
        ("gating", {"rate": 2.0}, "false_positive_rate must lie between 0 and 1; got 2"),
        ("prompt_sites", {"k": 0}, "--k must be a whole number from 1 on; got 0"),
        ("prompt_sites", {"rule": "best"}, "unknown rule 'best'"),
        ("conversations", {"tokens": 0}, "--tokens must be a whole number from 1 on; got 0"),
        ("entanglement", {"goal": "up"}, "--goal must be one of lower, raise; got 'up'"),
        ("entanglement", {"step": 0.0}, "--step must be at least 0.1° and at most 180°; got 0"),
        ("entanglement", {"capability": -1}, "--capability must be a whole number from 0 on"),
        ("entanglement", {"nulls": -1}, "--nulls must be a whole number from 0 on; got -1"),
        ("drift", {"source": [], "step": 1e-9}, "--step must be at least 0.1°"),
        ("drift", {"source": [], "train": 1}, "--train must be a whole number from 2 on; got 1"),
        ("drift", {"source": [], "test": 0}, "--test must be a whole number from 1 on; got 0"),
        ("budget", {"step": 0}, "a step of 1 to 90 degrees; got 0"),
        ("baselines", {"step": 91}, "a step of 1 to 90 degrees; got 91"),
        ("baselines", {"max_new_tokens": 0}, "--max-new-tokens must be at least 1; got 0"),
        ("baselines", {"behaviour": "langage"}, "unknown behaviour 'langage'"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main_of(name)(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "--step 0 give no scan, expected 2 to 3,600 angles"),
        ({"step": -45.0}, "--step -45 give no scan"),
        ({"low": 180.0, "high": 0.0}, "--from 180, --to 0 and --step 45 give no scan"),
        ({"high": float("nan")}, "--to nan"),
        ({"step": 1e-9}, "give no scan"),
        ({"high": 360.0}, "angle 0 is given twice"),
        ({"goal": "up"}, "--goal must be raise or lower; got 'up'"),
        ({"rule": "best"}, "unknown rule 'best'"),
        ({"train": 0}, "--train must be a whole number from 1 on; got 0"),
        ({"test": 2}, "--test must be a whole number from 3 on; got 2"),
        ({"train": 3}, "set has 4 questions; expected at least 3 .* 3 others"),
        ({"twice": True}, "two files of questions are called 'set'"),
    ],
)
def test_a_scan_of_questions_that_cannot_be_is_one_line(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    rows = [dict(zip(KEYS, (f"Is it {i}?", "Yes", "No"), strict=True)) for i in range(4)]
    paths = [tmp_path / "set.jsonl"]
    paths[0].write_text("\n".join(map(json.dumps, rows)))
    if options.pop("twice", False):
        (tmp_path / "other").mkdir()
        paths.append(tmp_path / "other" / "set.jsonl")
        paths[1].write_text(paths[0].read_text())
    small = {"train": 1, "test": 3}
    with pytest.raises(UserError, match=message):
        main_of("steerability")(questions=paths, **{**small, **options})


def test_two_files_of_one_name_are_refused_beside_requests_too(tmp_path: Path) -> None:
    paths = [tmp_path / "set.jsonl", tmp_path / "other" / "set.jsonl"]
    with pytest.raises(UserError, match="two files of questions are called 'set'"):
        main_of("entanglement")(behaviour=paths)


def test_angles_of_a_scan_reach_its_end_and_those_of_a_turn_do_not() -> None:
    assert output.scan(0, 180, 45) == [0, 45, 90, 135, 180]
    assert output.scan(90, 180, 60) == [90, 150]
    assert output.scan(0, 0.3, 0.1) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert output.around(90) == [0, 90, 180, 270]
    assert output.around(100) == [0, 100, 200, 300]
    assert len(output.around(0.1)) == 3600
