"""Help and listings answer at once; the store is listed, verified and emptied."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ss_lens import Site
from ss_lens.activations.manifest import Manifest
from ss_lens.models.sources import MODELS
from tests.cli.command import CommandLine, assert_one_clear_line
from tests.conftest import made_activations

VERBS = ("run", "capture", "calibrate", "steer", "generate", "models", "datasets", "store")


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
    [
        ("--help",),
        *((verb, "--help") for verb in VERBS),
        *(("store", "rm", "--help"), ("models",), ("datasets",), ("store", "ls")),
        ("judges", "measure", "--help"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_help_answers_without_loading_torch(arguments: tuple[str, ...]) -> None:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments], capture_output=True, text=True, timeout=60
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Of the processor's time, which other work on the machine does not change.
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 1
    assert done.stdout.endswith("LOADED []\n")
    assert "Usage:" in done.stdout or arguments[-1] != "--help"
    assert time.monotonic() - start < 10  # importing torch and its company takes longer


def test_a_store_with_sets_is_listed_without_loading_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(0, "ln1_out")
    spec = made_activations(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), (site,)).spec
    Manifest.of(spec, [range(spec.n_prompts)]).write(tmp_path / "store" / spec.key)
    monkeypatch.setenv("SS_LENS_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", HELP, "store", "ls"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert spec.key[:12] in done.stdout
    assert done.stdout.endswith("LOADED []\n")


def test_help_lists_every_verb(ss: CommandLine) -> None:
    finished = ss("--help")
    assert finished.code == 0
    assert all(f" {verb} " in finished.out for verb in VERBS)


def test_models_are_listed(ss: CommandLine) -> None:
    listed = ss("models", "--json").json
    assert {row["name"] for row in listed} == {*MODELS}
    assert {"name", "source", "from", "disk", "memory", "here"} == set(listed[0])
    table = ss("models")
    assert table.code == 0
    assert all(row["name"] in table.out and row["source"] in table.out for row in listed)


def test_a_model_in_parts_is_listed_with_its_sources_in_order_and_its_sizes(
    ss: CommandLine, tmp_path: Path
) -> None:
    name = "qwen2.5-coder-1.5b"
    file = MODELS[name].file
    assert file is not None
    hub, index = (row for row in ss("models", "--json").json if row["name"] == name)
    assert (hub["from"], index["from"]) == ("Hub", "package index")
    for row in (hub, index):
        assert (row["disk"], row["memory"], row["here"]) == (1_117_320_768, 7_108_352_000, False)
    (line, _) = (line for line in ss("models").out.splitlines() if line.startswith(name))
    assert line.split()[-5:] == ["1.1", "GB", "7.1", "GB", "no"]

    folder = tmp_path / "home" / "models" / f"{name}-{file.sha256[:12]}"
    parts = folder.with_name(f"{folder.name}.parts")
    parts.mkdir(parents=True)
    (parts / "part01").write_bytes(b"")
    assert "1 of 22 parts" in ss("models").out
    folder.mkdir()
    (folder / "source.json").write_text("{}")
    with (folder / "model.gguf").open("wb") as weights:
        weights.truncate(file.n_bytes - 1)
    assert not any(row["here"] for row in ss("models", "--json").json if row["name"] == name)
    with (folder / "model.gguf").open("wb") as weights:
        weights.truncate(file.n_bytes)
    assert all(row["here"] for row in ss("models", "--json").json if row["name"] == name)


def test_datasets_are_listed(ss: CommandLine) -> None:
    listed = {row["name"]: row for row in ss("datasets", "--json").json}
    assert set(listed) == {"refusal", "refusal-everyday", "sentiment"}
    assert listed["refusal"]["positive"] >= 96
    assert "refusal" in ss("datasets").out
    for row in listed.values():
        assert all(row[name] for name in ("contents", "purpose", "licence"))
        assert all(str(value) in ss("datasets").out for value in row.values())


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


@pytest.mark.parametrize("verb", [("ls",), ("verify",), ("rm", "abc")])
def test_a_home_that_is_a_file_is_no_empty_store(
    ss: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    home = tmp_path / "file"
    home.touch()
    for place in (home, home / "below"):
        monkeypatch.setenv("SS_LENS_HOME", str(place))
        told = f"the store would be at {place / 'store'}, and {home} is no folder; point"
        assert_one_clear_line(ss("store", *verb), told)


def test_a_limit_beyond_the_dataset_says_what_is_used(
    ss: CommandLine, llama: Path, data: Path
) -> None:
    where = ("capture", "--model", llama, "--dataset", data, "--limit")
    beyond = ss(*where, 500)
    assert beyond.code == 0
    told = [line for line in beyond.err.splitlines() if line.startswith("--limit")]
    assert told == [
        "--limit 500 is more than 'tiny.jsonl' has per class; 12 + 12 prompts are used."
    ]
    assert "--limit" not in ss(*where, 12).err


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


def test_the_version_is_told(ss: CommandLine) -> None:
    finished = ss("--version")
    assert (finished.code, finished.out) == (0, f"ss-lens {version('ss_lens')}\n")


def test_entries_of_other_weights_are_told_apart(
    ss: CommandLine, tiny_folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Two folders of one name, whose weights differ."""
    for place, architecture in (("a", "llama"), ("b", "gpt2")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model").symlink_to(tiny_folders[architecture])
        ss("capture", "--model", tmp_path / place / "model", "--dataset", data)
    rows = ss("store", "ls", "--json").json
    assert len({row["weights"] for row in rows}) == 2
    assert all(re.fullmatch("[0-9a-f]{12}", row["weights"]) for row in rows)
    assert all(row["weights"] in ss("store", "ls").out for row in rows)
