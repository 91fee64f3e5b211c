"""Bars appear where a person can see them, and where the work takes a while."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core import progress
from ss_lens.models import load
from ss_lens.models.loading import fingerprint
from ss_lens.scoring import refusal_score as scoring
from ss_lens.scoring.behaviours import openings
from ss_lens.stats import paired


class Seen:
    """Stands in for ``progress_bar`` and counts."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, str]] = []
        self.total = self.done = 0

    def __call__(self, total: int, what: str, unit: str) -> Seen:
        self.bars.append((what, unit))
        self.total += total
        return self

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self.done += n


@pytest.mark.parametrize("seen", [False, True])
def test_a_bar_is_shown_to_a_person_alone(seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: seen, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with progress.progress_bar(10, "work", "step") as bar:
        assert bar.disable is not seen


def test_a_bar_is_hidden_where_the_variable_of_tqdm_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with progress.progress_bar(10, "work", "step") as bar:
        assert bar.disable


def test_work_that_is_soon_over_shows_no_bar_and_other_work_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for delay, shown in ((60, False), (0, True)):
        monkeypatch.setattr(progress, "AFTER_SECONDS", delay)
        with progress.progress_bar(4, "work", "step") as bar:
            bar.update(2)
        told = capsys.readouterr().err
        assert ("work" in told) == shown
        assert ("<" in told) == shown  # elapsed < left


def test_refusal_scores_count_their_prompts(
    tiny_models: dict[str, TransformerBridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    monkeypatch.setattr(openings, "progress_bar", seen)
    scoring.refusal_score(tiny_models["qwen2"], ["a", "b c", "d"], batch_size=2)
    assert (seen.bars, seen.total, seen.done) == ([("refusal score", "prompt")], 3, 3)


def test_the_fingerprint_of_a_model_counts_its_bytes(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    monkeypatch.setattr(fingerprint, "progress_bar", seen)
    model = load.load_model(tiny_folders["llama"])
    assert len(str(fingerprint.identify(model).fingerprint)) == 2 * hashlib.sha256().digest_size
    size = sum(w.nbytes for w in model.original_model.parameters())
    assert (seen.bars, seen.total, seen.done) == ([("fingerprint", "B")], size, size)


def test_a_comparison_counts_its_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    monkeypatch.setattr(paired, "progress_bar", seen)
    rng = np.random.default_rng(0)
    cells = pd.DataFrame(
        [
            {"variant": v, "draw": 0, "prompt_class": "positive", "prompt_index": i, "x": value}
            for v in ("a", "b")
            for i, value in enumerate(rng.normal(size=8))
        ]
    )
    paired.compare(cells, ("x",), "a", seed=0)
    assert (seen.bars, seen.total, seen.done) == ([("compare", "interval")], 2, 2)
