"""Without --dataset a verb takes the dataset of its model, and says which."""

from __future__ import annotations

from pathlib import Path

import pytest

import ss_lens
from ss_lens import ContrastiveDataset, RunConfig, UserError
from ss_lens.cli import jobs
from ss_lens.core.errors import Unavailable
from ss_lens.models.sources import DEFAULT_MODEL, MODELS, default_dataset
from tests.cli.command import CommandLine


class Stopped(UserError):
    """In place of the model, when everything that comes before is done."""


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The datasets that a verb loads until it would load its model."""
    names: list[str] = []
    load = ss_lens.load_dataset

    def loaded(name: str) -> ContrastiveDataset:
        names.append(name)
        return load(name)

    def stop(*arguments: object, **options: object) -> None:
        raise Stopped("the model is loaded.")

    monkeypatch.setattr(ss_lens, "load_dataset", loaded)
    for place in ("ss_lens.load_model", "ss_lens.run_ablations"):
        monkeypatch.setattr(place, stop)
    monkeypatch.setattr("ss_lens.experiments.paper.run.run_paper", stop)
    return names


@pytest.mark.parametrize("model", [DEFAULT_MODEL, "qwen2.5-coder-1.5b", "somebody/else"])
def test_a_verb_takes_the_dataset_of_its_model_and_says_which(
    ss: CommandLine, named: list[str], model: str, tmp_path: Path
) -> None:
    own, out = default_dataset(model), ("--out", tmp_path / "out")
    for command in (
        ("run", *out),
        ("capture",),
        ("calibrate", *out),
        ("steer", "Hello.", "--angle", 90),
        ("ablate", *out),
        ("paper", *out),
    ):
        named.clear()
        done = ss(*command, "--model", model)
        assert done.err.splitlines()[0] == f"dataset {own}, the default for {model}", command
        assert {*named} == {own}
        assert "error: the model is loaded." in done.err
        done = ss(*command, "--model", model, "--dataset", "sentiment")
        assert named[-1] == "sentiment"
        assert "the default" not in done.err


def test_every_default_is_embedded_and_the_organisms_is_the_matched_one() -> None:
    defaults = {name: default_dataset(name) for name in MODELS}
    assert defaults.pop(DEFAULT_MODEL) == "refusal"
    assert {*defaults.values()} == {"refusal-everyday"} == {default_dataset("somebody/else")}
    for name in ("refusal", "refusal-everyday"):
        assert ss_lens.load_dataset(name).name == name


def test_a_fallback_runs_on_its_own_dataset_also_in_a_folder_that_holds_its_run(
    named: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    ran: list[str] = []

    def load(name: str, **_: object) -> str:
        if name == DEFAULT_MODEL:
            return name
        raise Unavailable("large needs 11 GB of memory; 4 GB are free.")

    def main_job(model: object, data: ContrastiveDataset, *_: object) -> None:
        ran.append(data.name)
        raise Stopped("ran.")

    def of_the_fallback(
        run_dir: Path, data: ContrastiveDataset, config: RunConfig, *_: object
    ) -> None:
        if data.name != "refusal":
            raise UserError("holds a run that differs in dataset.")

    monkeypatch.setattr(ss_lens, "load_model", load)
    monkeypatch.setattr(ss_lens, "run_main_job", main_job)
    for check in (lambda *_: None, of_the_fallback):
        monkeypatch.setattr("ss_lens.experiments.dial.folder.check_run_dir", check)
        with pytest.raises(Stopped):
            jobs.run(model="qwen2.5-coder-1.5b", fallback=DEFAULT_MODEL, out_dir=tmp_path / "run")
    assert ran == ["refusal", "refusal"]
    said = capsys.readouterr().err
    assert f"Running {DEFAULT_MODEL} instead.\ndataset refusal, the default for" in said
    with pytest.raises(UserError, match="differs in dataset"):
        jobs.run(model="qwen2.5-coder-1.5b", out_dir=tmp_path / "run")
