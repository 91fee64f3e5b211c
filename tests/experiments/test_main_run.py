"""The main job: resumable at every step, and its files are not trusted."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ChatFormat, ContrastiveDataset, RunConfig, Store, UserError
from ss_lens.core.files import sha256_of_file
from ss_lens.core.sealed import write_sealed_json
from ss_lens.experiments.dial.folder import TABLES, claim, load_run
from ss_lens.experiments.main_run import run_main_job, score_by_angle
from ss_lens.scoring.coherence import coherence
from ss_lens.scoring.refusal import opens_with_refusal

worker = importlib.import_module("ss_lens.experiments.worker")
dial = importlib.import_module("ss_lens.experiments.dial.scan")
scored_answers = importlib.import_module("ss_lens.experiments.dial.answers")
CONFIG = RunConfig(
    angles_deg=(0, 120, -60),
    dev=2,
    test=3,
    max_new_tokens=4,
    rule="uniform",
    draws=2,
    keep_answers=True,
)


@pytest.fixture(scope="module", autouse=True)
def letters_of_any_script() -> Iterator[None]:
    """The tiny model writes random bytes, which count as collapsed text otherwise."""
    lenient = {s: replace(c, max_non_latin_share=None) for s, c in dial.CRITERIA.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dial, "CRITERIA", lenient)
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def finished(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    kept: Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, ss_lens.Run]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run_main_job(tiny_models["qwen2"], tiny_data, folder, CONFIG, store=kept)


@pytest.fixture
def tiny(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    """The model whose tokenizer tells refusal openings apart."""
    return tiny_models["qwen2"]


def test_the_activations_of_a_run_are_in_the_store_at_every_captured_stream(
    finished: tuple[Path, ss_lens.Run], kept: Store
) -> None:
    """The figures load them by these keys; the calibration's own are of its streams alone."""
    _, run = finished
    for part, n_prompts in (("train", 2 * 7), ("test", 2 * 3)):
        acts = kept.load(run.activations[part])
        assert acts.spec.n_prompts == n_prompts
        assert {site.stream for site in acts.sites} == {"ln1_out", "ln2_out", "resid_post"}


def test_the_main_job_gives_the_numbers_of_its_parts(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    kept: Store,
) -> None:
    """The answers are those of sweep_angles, at 0° and at the angle of each sense."""
    _, run = finished
    parts = tiny_data.split(dev=2, test=3, seed=0)
    calibration = ss_lens.calibrate(ss_lens.capture(tiny, parts.train, store=kept), rule="uniform")
    assert run.calibration.selected_sites == calibration.selected_sites
    assert (run.calibration.plane.b1 == calibration.plane.b1).all()
    tables = [
        ss_lens.sweep_angles(
            tiny,
            calibration,
            ss_lens.RotateBy,
            getattr(parts.test, label),
            CONFIG.angles_deg,
            max_new_tokens=4,
        ).assign(prompt_class=label)
        for label in ("positive", "negative")
    ]
    answers = pd.concat(tables, ignore_index=True)
    texts = answers["response"].tolist()
    refused = ss_lens.classify_refusal(texts, answers["prompt"])["label"] != "none"
    phrases = [opens_with_refusal(text) for text in texts]
    said = answers.assign(refused=refused, refused_phrases=phrases)
    expected = pd.concat([said, coherence(texts)], axis=1)
    pd.testing.assert_frame_equal(run.responses[[*expected]], expected)
    by_angle = score_by_angle(expected)
    pd.testing.assert_frame_equal(run.scores[[*by_angle]], by_angle)
    assert run.scores["angle_deg"].tolist() == [0.0, 120.0, 300.0]


def test_a_run_reads_back_and_a_repeated_one_computes_nothing(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    kept: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, run = finished

    def computed(*arguments: object) -> None:
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr(worker, "measured", computed)
    monkeypatch.setattr(scored_answers, "_answered", computed)
    again = run_main_job(tiny, tiny_data, folder, CONFIG, store=kept)
    loaded = load_run(folder)
    for other in (again, loaded):
        assert other.config == CONFIG
        assert other.activations == run.activations
        pd.testing.assert_frame_equal(other.responses, run.responses)
        pd.testing.assert_frame_equal(other.scores, run.scores)
        pd.testing.assert_frame_equal(other.dial, run.dial)
        pd.testing.assert_frame_equal(other.choices, run.choices)
        assert other.verdict == run.verdict


def test_a_changed_table_is_refused_and_a_repeated_run_makes_it_again(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    kept: Store,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    for name in ("responses.csv", "scores.csv", "dial.csv", "choices.csv"):
        whole = (folder / name).read_bytes()
        for harmed in (whole[:-9], whole.replace(b"120.0", b"121.0", 1), b""):
            (folder / name).write_bytes(harmed)
            with pytest.raises(UserError, match=rf"{name} is missing or was changed since the run"):
                load_run(folder)
        (folder / name).write_bytes(whole)
    (folder / "scores.csv").write_text("angle_deg\n")
    run_main_job(tiny, tiny_data, folder, CONFIG, store=kept)
    pd.testing.assert_frame_equal(load_run(folder).scores, finished[1].scores)
    values = json.loads((folder / "run.json").read_text())
    values["config"]["max_new_tokens"] = 5
    (folder / "run.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"run.json is damaged .*or it was edited"):
        load_run(folder)
    (folder / "tables.json").unlink()
    shutil.copy(finished[0] / "run.json", folder)
    with pytest.raises(UserError, match="is not finished"):
        load_run(folder)


def test_a_whole_file_of_another_kind_is_no_run(
    finished: tuple[Path, ss_lens.Run], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.copy(tmp_path / "run" / "tables.json", tmp_path / "run" / "run.json")
    with pytest.raises(UserError, match="has format None"):
        load_run(tmp_path / "run")
    shutil.copy(
        tmp_path / "run" / "calibration" / "calibration.json", tmp_path / "run" / "run.json"
    )
    with pytest.raises(UserError, match=r"run\.json describes no run \(another file is in its"):
        load_run(tmp_path / "run")


def test_a_damaged_answer_is_computed_again(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    kept: Store,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    path = min((folder / "answers" / "cells").glob("*/answers-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="its checksum differs"):
        again = run_main_job(tiny, tiny_data, folder, CONFIG, store=kept)
    pd.testing.assert_frame_equal(again.responses, finished[1].responses)


def test_a_run_of_an_earlier_version_is_read_and_not_resumed(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    values = json.loads((folder / "run.json").read_text())
    del values["sha256"]
    (folder / "run.json").write_text(json.dumps({**values, "format": 1}))
    (folder / "tables.json").unlink()
    columns = ["prompt_index", "prompt", "angle_deg", "response", "prompt_class", "refused"]
    columns += ["compression_ratio", "repetition", "non_latin_share", "n_words", "n_bytes"]
    finished[1].responses[columns].to_csv(folder / "responses.csv", index=False)
    loaded = load_run(folder)
    pd.testing.assert_frame_equal(loaded.responses, finished[1].responses[columns])
    assert loaded.dial.empty
    assert loaded.choices.empty
    assert not loaded.verdict
    write_sealed_json(folder / "run.json", {**values, "format": 2})
    names = ("responses.csv", "scores.csv")
    digests = {name: sha256_of_file(folder / name) for name in names}
    write_sealed_json(folder / "tables.json", digests)
    pd.testing.assert_frame_equal(load_run(folder).responses, loaded.responses)
    with pytest.raises(UserError, match="of an earlier version, which can be read and not resumed"):
        run_main_job(tiny, tiny_data, folder, CONFIG)


def test_a_folder_with_another_run_or_other_things_is_refused_before_capture(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ss_lens.experiments.inputs.capture", None)
    other = RunConfig(**{**vars(CONFIG), "max_new_tokens": 5})
    with pytest.raises(UserError, match="holds a run that differs in config"):
        run_main_job(tiny, tiny_data, finished[0], other)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is not empty and holds no run; choose another --out"):
        run_main_job(tiny, tiny_data, tmp_path, CONFIG)


def test_a_chat_format_changes_the_answers_and_is_kept(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    kept: Store,
    tmp_path: Path,
) -> None:
    assert "chat" not in json.loads((finished[0] / "run.json").read_text())["config"]
    config = RunConfig(**{**vars(CONFIG), "chat": ChatFormat(system="w9 w10")})
    run = run_main_job(tiny, tiny_data, tmp_path / "run", config, store=kept)
    assert run.activations != finished[1].activations
    assert run.responses["response"].tolist() != finished[1].responses["response"].tolist()
    assert load_run(tmp_path / "run").config == config


STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree")


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that dies at its ``step``-th touch of the disk; whether it did."""
    child = os.fork()
    if child == 0:
        left = [step]

        def count(event: str, arguments: object) -> None:
            if event in STEPS:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_run_killed_at_any_step_of_claiming_its_folder_resumes(
    finished: tuple[Path, ss_lens.Run], tmp_path: Path
) -> None:
    identity = json.loads((finished[0] / "run.json").read_text())
    del identity["started"], identity["sha256"]
    step = 0
    while killed_at(step, partial(claim, tmp_path / str(step), identity)):
        claim(tmp_path / str(step), identity)
        assert [path.name for path in (tmp_path / str(step)).iterdir()] == ["run.json"]
        step += 1
    assert step > 5


@pytest.mark.slow
def test_a_run_killed_at_any_step_resumes_to_the_same_files(
    finished: tuple[Path, ss_lens.Run],
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    kept: Store,
    tmp_path: Path,
) -> None:
    """Every nineteenth step of a run, from the first file to the last."""

    def work(folder: Path) -> ss_lens.Run:
        return run_main_job(tiny, tiny_data, folder, CONFIG, store=kept)

    step = 3
    while killed_at(step, partial(work, tmp_path / str(step))):
        folder = tmp_path / str(step)
        work(folder)
        for name in (*TABLES, "tables.json"):
            assert (folder / name).read_bytes() == (finished[0] / name).read_bytes()
        assert not [path for path in folder.rglob(".*") if path.is_dir()]
        step += 19
    assert step > 30
