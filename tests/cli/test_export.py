"""``ss-lens export``: each kind, the comparison, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ss_lens.models import load
from tests.cli.command import CommandLine, assert_one_clear_line, only_errors


@pytest.fixture
def calibration(ss: CommandLine, llama: Path, data: Path, tmp_path: Path) -> Path:
    options = ("--model", llama, "--dataset", data, "--rule", "uniform")
    assert ss("calibrate", *options, "--out", tmp_path / "calibration").code == 0
    return tmp_path / "calibration"


@pytest.mark.parametrize(
    ("kind", "options", "operators"),
    [
        ("lora", ("--angle", 135), ["RotateBy(angle_deg=135.0)"]),
        ("merged", ("--angle", 135, "--dtype", "bfloat16"), ["RotateBy(angle_deg=135.0)"]),
        ("gguf-lora", ("--operator", "Ablate"), ["Ablate()"]),
        ("dial", (), [f"RotateBy(angle_deg={angle}.0)" for angle in (45, 135, 225, 315)]),
        ("bank", ("--angles", "0,90"), ["RotateBy(angle_deg=0.0)", "RotateBy(angle_deg=90.0)"]),
    ],
)
def test_each_kind_is_written_and_judged(
    kind: str,
    options: tuple,
    operators: list[str],
    ss: CommandLine,
    calibration: Path,
    llama: Path,
    tmp_path: Path,
) -> None:
    """The model is the one that was calibrated; the embedded prompts are read."""
    out = tmp_path / "out"
    made = ss("export", calibration, *options, "--as", kind, "--out", out, "--json")
    assert made.code == 0, made.err
    assert made.json["folder"] == str(out)
    assert made.json["kind"] == kind
    assert [row["operator"] for row in made.json["parity"]] == operators
    assert all(row["n_prompts"] == 16 for row in made.json["parity"])
    assert all(row["relative"] <= row["tolerance"] for row in made.json["parity"])
    again = ss("export", "--verify", out, llama, "--json")
    assert again.json == made.json


def test_the_table_says_what_was_measured(
    ss: CommandLine, calibration: Path, tmp_path: Path
) -> None:
    made = ss("export", calibration, "--angle", 20, "--as", "lora", "--out", tmp_path / "out")
    first, head, row = made.out.splitlines()
    assert first == f"lora at {tmp_path / 'out'}"
    assert head.split()[:3] == ["operator", "dtype", "prompts"]
    assert row.split()[:3] == ["RotateBy(angle_deg=20.0)", "float32", "16"]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--angle", 1, "--out", "x"), ("--as is missing", "ss-lens export runs/sentiment")),
        (("--angle", 1, "--as", "lora"), ("--out is missing",)),
        (("--as", "lora", "--out", "x"), ("got no angle", "write for instance --angle 30")),
        (("--as", "bank", "--angle", 1, "--out", "x"), ("got --angle, expected --angles",)),
        (("--as", "dial", "--angle", 1, "--out", "x"), ("a dial holds every angle; leave it out",)),
        (("--as", "lora", "--angle", 1, "--operator", "Ablate", "--out", "x"), ("--angle and",)),
        (("--as", "lora", "--operator", "Frob", "--out", "x"), ("unknown operator 'Frob'",)),
        (("--as", "lora", "--operator", "RotateTo(angle_deg=9)", "--out", "x"), ("not linear",)),
        (("--as", "lora", "--angle", "nan", "--out", "x"), ("angle_deg must be finite",)),
        (("--as", "lora", "--angle", 1, "--dtype", "float16", "--out", "x"), ("always float32",)),
        (("--as", "merged", "--angle", 1, "--dtype", "int8", "--out", "x"), ("unknown dtype",)),
        (("--as", "lora", "--angle", 1, "--gguf", "f16", "--out", "x"), ("is given for 'lora'",)),
        (("--as", "lora", "--angle", 1, "--out", "calibration"), ("holds something that",)),
        (("--verify", "x", "--angle", 1), ("--verify is given beside --angle",)),
        (("--angle", 1, "--as", "lora", "--server", "http://x"), ("without --verify, expected",)),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_a_model_is_loaded(
    options: tuple,
    fragments: tuple[str, ...],
    ss: CommandLine,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "load_model", never)
    monkeypatch.setattr("ss_lens.load_model", never, raising=False)
    assert_one_clear_line(ss("export", calibration, *options), *fragments)
    assert not (tmp_path / "x").exists()


def test_what_is_no_export_is_one_line(ss: CommandLine, llama: Path, tmp_path: Path) -> None:
    assert_one_clear_line(ss("export", "--verify", tmp_path, llama), "there is no export at")


def test_a_damaged_export_is_one_line(
    ss: CommandLine, calibration: Path, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert ss("export", calibration, "--angle", 9, "--as", "lora", "--out", out).code == 0
    config = out / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 3}))
    done = only_errors(ss("export", "--verify", out, llama))
    assert_one_clear_line(done, "adapter_config.json differs from what was exported")


def test_another_model_is_one_line(
    ss: CommandLine, calibration: Path, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    other = ("--model", tiny_folders["gemma2"], "--angle", 9, "--as", "lora")
    done = ss("export", calibration, *other, "--out", tmp_path / "out")
    assert_one_clear_line(done, "the calibration was made on")
    assert not (tmp_path / "out").exists()
