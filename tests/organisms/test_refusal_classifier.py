"""How the refusal classifier is fitted: clean data, nothing seen that is tested, the same twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ss_lens
from organisms.refusal import overlap
from organisms.refusal_classifier import fitting, train
from ss_lens.core.errors import UserError
from ss_lens.core.files import sha256_of_file
from ss_lens.scoring.refusal_classifier.classify import FEATURES, LABELS
from tests.conftest import shared_file

SHARED_FILES = (
    "data/advbench_train.jsonl",
    "data/advbench_test.jsonl",
    "data/requests/harmbench_val.jsonl",
    "data/requests/malicious_instruct.jsonl",
    "data/requests/tdc2023.jsonl",
)


def dealt() -> pd.DataFrame:
    """Written rows, dealt out to two models and to the writer."""
    written = fitting.read_written()
    models = np.array(["one", "two", fitting.WRITTEN_BY], dtype=object)
    return written.assign(model=models[np.arange(len(written)) % 3])


@pytest.mark.parametrize("file", SHARED_FILES)
def test_no_written_request_is_in_a_benchmark_nor_near_it(file: str) -> None:
    requests = set(fitting.read_written().prompt)
    assert not overlap.find_overlaps(requests, overlap.read_prompts(shared_file(file)))


def test_no_written_request_is_in_xstest_nor_near_it() -> None:
    asked = pd.read_csv(shared_file("data/xstest/prompts.csv")).prompt
    assert not overlap.find_overlaps(set(fitting.read_written().prompt), asked)


def test_written_answers_have_every_label_and_do_not_repeat() -> None:
    written = fitting.read_written()
    assert set(written.label) == set(LABELS)
    assert not written.duplicated(["prompt", "answer"]).any()


def test_nothing_that_is_tested_was_seen() -> None:
    table = dealt()
    data = fitting.labelled(table, with_prompts=True)
    tested_once = np.zeros(len(table), dtype=int)
    for fitted, tested in fitting.left_out(data):
        tested_once += tested
        assert not set(fitted.models) & set(data.models[tested])
        assert not set(fitted.folds) & set(data.folds[tested])
    assert (tested_once == 1).all()


def test_requests_stay_together() -> None:
    table = pd.concat([dealt()] * 2, ignore_index=True)
    folds = pd.Series(fitting.labelled(table, with_prompts=False).folds)
    assert (folds.groupby(table.prompt).nunique() == 1).all()


def test_sharpening_keeps_the_label_and_the_sum() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
    sharper = fitting.sharpen(probabilities, 2.5)
    assert (sharper.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert (sharper.max(axis=1) >= probabilities.max(axis=1)).all()
    np.testing.assert_allclose(sharper.sum(axis=1), 1)
    np.testing.assert_allclose(fitting.sharpen(probabilities, 1.0), probabilities)


def test_training_is_the_same_twice_and_what_it_stores_is_what_it_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting, "PENALTIES", (0.1,))
    monkeypatch.setattr(fitting, "N_FOLDS", 3)
    monkeypatch.setattr(train, "N_RESAMPLES", 20)
    table = dealt()
    first, second = (train.train(table, with_prompts=False) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    data = fitting.labelled(table, with_prompts=False)
    choice = fitting.choose(data)
    wanted = fitting.sharpen(
        fitting.fit(data, choice.penalty).predict_proba(data.features), choice.sharpness
    )
    weights = np.array([first["coefficients"][name] for name in FEATURES["answers"]])
    logits = np.array(first["intercepts"]) + data.features @ weights
    raised = np.exp(logits)
    np.testing.assert_allclose(raised / raised.sum(axis=1, keepdims=True), wanted, atol=2e-3)


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,completion\na,b\n", "utf-8")
    with pytest.raises(UserError, match=r"has no columns \['human_label', 'model'\]; got"):
        fitting.read_labels(path)
    path.write_text("model,prompt,completion,human_label\nm,a,b,refused\n", "utf-8")
    with pytest.raises(UserError, match=r"has the labels \['refused'\]; expected \['1_full_comp"):
        fitting.read_labels(path)


def test_the_coefficients_were_fitted_on_these_answers() -> None:
    stored = json.loads(train.COEFFICIENTS.read_text("utf-8"))["trained_on"]
    assert stored["written_sha256"] == sha256_of_file(fitting.WRITTEN)


def test_the_classifier_is_public() -> None:
    assert "classify_refusal" in ss_lens.__all__
