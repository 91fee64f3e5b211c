"""Parity and the main job on the real default model."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import ss_lens
from ss_lens import ContrastiveDataset, RotateBy, RunConfig, Site, Store
from ss_lens.models.adapters import adapter_folder
from ss_lens.models.fetching import fetch
from ss_lens.models.sites import available_streams
from ss_lens.models.sources import DEFAULT_MODEL, SMOLLM2_135M
from tests.oracles import HuggingFaceOracle, dense_rotation, everywhere, relative_error

pytestmark = pytest.mark.default_model
TOLERANCE = 1e-4
worker = importlib.import_module("ss_lens.experiments.worker")
CONFIG = RunConfig(
    angles_deg=(0.0, 120.0),
    dev=2,
    test=2,
    max_new_tokens=8,
    rule="uniform",
    draws=2,
    keep_answers=True,
)


@pytest.fixture(scope="module")
def data() -> ContrastiveDataset:
    """Few prompts, of different lengths."""
    return ss_lens.load_dataset("refusal").head(7)


@pytest.fixture(scope="module")
def oracle(
    default_model: TransformerBridge, tmp_path_factory: pytest.TempPathFactory
) -> HuggingFaceOracle:
    """The default model as PEFT merges it, in a folder of its own."""
    folder, base = tmp_path_factory.mktemp("merged"), fetch(SMOLLM2_135M.name)
    model = AutoModelForCausalLM.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, adapter_folder(DEFAULT_MODEL)).merge_and_unload()
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return HuggingFaceOracle(folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_captured_activations_equal_plain_hooks_at_every_site(
    default_model: TransformerBridge,
    oracle: HuggingFaceOracle,
    data: ContrastiveDataset,
    kept: Store,
) -> None:
    few = data.head(3)
    streams = available_streams(default_model)
    acts = ss_lens.capture(default_model, few, streams=streams, batch_size=4, store=kept)
    assert len(acts.sites) == 5 * 30
    expected = torch.stack(
        [oracle.activations(oracle.ids(p), acts.sites)[-1] for p in (*few.positive, *few.negative)]
    )
    got = torch.cat((acts.positive, acts.negative))
    errors = {
        str(site): relative_error(got[:, i], expected[:, i]) for i, site in enumerate(acts.sites)
    }
    assert max(errors.values()) < TOLERANCE, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("streams", [("ln1_out", "ln2_out"), ("resid_post",), ("resid_mid",)])
def test_steered_logits_equal_a_dense_rotation_in_plain_hooks(
    streams: tuple[str, ...],
    default_model: TransformerBridge,
    oracle: HuggingFaceOracle,
    data: ContrastiveDataset,
    kept: Store,
) -> None:
    every = available_streams(default_model)
    acts = ss_lens.capture(default_model, data.head(3), streams=every, store=kept)
    calibration = ss_lens.calibrate(acts, streams=streams, rule="uniform")
    ids = oracle.ids(data.negative[4])
    edits = everywhere(dense_rotation(calibration.plane, 75), calibration.selected_sites)
    with torch.inference_mode(), ss_lens.steer(default_model, calibration, RotateBy(75)):
        got = default_model(ids)[0]
    assert relative_error(got, oracle.logits(ids, edits)) < TOLERANCE
    assert relative_error(got, oracle.logits(ids)) > 0.05


def test_greedy_answers_equal_those_of_transformers(
    default_model: TransformerBridge, oracle: HuggingFaceOracle, data: ContrastiveDataset
) -> None:
    prompts = list(data.negative[:2])
    answers = ss_lens.generate(default_model, prompts, max_new_tokens=8)
    assert answers == [oracle.greedy(prompt, 8) for prompt in prompts]


def test_the_template_is_applied_once_with_one_system_prompt(
    default_model: TransformerBridge, oracle: HuggingFaceOracle
) -> None:
    """What capture and generation tokenise is what the chat template writes, special tokens too."""
    (ids,) = importlib.import_module("ss_lens.models.chat").tokenize(default_model, ["Hello there"])
    assert list(ids) == oracle.ids("Hello there")[0].tolist()
    text = default_model.tokenizer.decode(ids)
    assert text.count("<|im_start|>") == 3
    assert text.endswith("<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def uninterrupted(
    default_model: TransformerBridge,
    data: ContrastiveDataset,
    kept: Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, ss_lens.Run]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, ss_lens.run_main_job(default_model, data, folder, CONFIG, store=kept)


def test_the_main_job_reports_every_angle_and_its_directory_reads_back(
    uninterrupted: tuple[Path, ss_lens.Run],
) -> None:
    folder, run = uninterrupted
    assert run.scores["angle_deg"].tolist() == [0.0, 120.0]
    assert len(run.responses) == 2 * 2 * 2
    loaded = ss_lens.load_run(folder)
    pd.testing.assert_frame_equal(loaded.scores, run.scores)
    pd.testing.assert_frame_equal(loaded.responses, run.responses)
    assert loaded.config == CONFIG
    assert loaded.calibration.selected_sites == run.calibration.selected_sites


def test_angle_zero_of_the_main_job_is_the_unsteered_model(
    uninterrupted: tuple[Path, ss_lens.Run], default_model: TransformerBridge
) -> None:
    responses = uninterrupted[1].responses
    zero = responses[responses["angle_deg"] == 0.0]
    turned = responses[responses["angle_deg"] == 120.0]
    unsteered = ss_lens.generate(default_model, zero["prompt"].tolist(), max_new_tokens=8)
    assert zero["response"].tolist() == unsteered
    assert turned["response"].tolist() != unsteered


def test_a_killed_main_job_resumes_to_the_same_tables(
    uninterrupted: tuple[Path, ss_lens.Run],
    default_model: TransformerBridge,
    data: ContrastiveDataset,
    kept: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep: Callable[..., pd.DataFrame] = worker.sweep_angles
    chunks: list[list[str]] = []

    def counted(*args: Any, **options: Any) -> pd.DataFrame:
        chunks.append(args[3])
        return sweep(*args, **options)

    def killed_at_the_second_chunk(*args: Any, **options: Any) -> pd.DataFrame:
        if chunks:
            raise KeyboardInterrupt
        return counted(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "sweep_angles", killed_at_the_second_chunk)
        with pytest.raises(KeyboardInterrupt):
            ss_lens.run_main_job(default_model, data, tmp_path / "run", CONFIG, store=kept)
    with pytest.raises(ss_lens.UserError, match="is not finished; start `ss-lens run` on it again"):
        ss_lens.load_run(tmp_path / "run")
    monkeypatch.setattr(worker, "sweep_angles", counted)
    resumed = ss_lens.run_main_job(default_model, data, tmp_path / "run", CONFIG, store=kept)
    assert len(chunks) == 4  # dev and test of both classes: one before the kill, the others after
    assert len({tuple(prompts) for prompts in chunks}) == 4
    folder, whole = uninterrupted
    pd.testing.assert_frame_equal(resumed.responses, whole.responses)
    pd.testing.assert_frame_equal(resumed.scores, whole.scores)
    for name in ("responses.csv", "scores.csv", "dial.csv", "choices.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


def test_a_second_main_job_captures_and_generates_nothing(
    uninterrupted: tuple[Path, ss_lens.Run],
    default_model: TransformerBridge,
    data: ContrastiveDataset,
    kept: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ss_lens")
    passes: list[int] = []
    embedding = default_model.original_model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, args: passes.append(1))
    try:
        folder, first = uninterrupted
        again = ss_lens.run_main_job(default_model, data, folder, CONFIG, store=kept)
    finally:
        handle.remove()
    assert passes == []
    assert "nothing captured" in caplog.text
    assert "shards: activations" not in caplog.text
    pd.testing.assert_frame_equal(again.responses, first.responses)


def test_a_run_directory_of_another_job_is_not_overwritten(
    uninterrupted: tuple[Path, ss_lens.Run],
    default_model: TransformerBridge,
    data: ContrastiveDataset,
    kept: Store,
) -> None:
    folder, first = uninterrupted
    before = (folder / "scores.csv").read_bytes()
    other = RunConfig(**{**vars(CONFIG), "max_new_tokens": 9})
    with pytest.raises(ss_lens.UserError, match="holds a run that differs in config"):
        ss_lens.run_main_job(default_model, data, folder, other, store=kept)
    assert (folder / "scores.csv").read_bytes() == before
    assert first.calibration.direction_site in first.calibration.sites


def test_the_first_blocks_input_has_no_direction_on_the_real_model(
    uninterrupted: tuple[Path, ss_lens.Run],
) -> None:
    assert uninterrupted[1].calibration.candidates.excluded == (Site(0, "ln1_out"),)
