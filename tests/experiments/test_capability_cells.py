"""Capability of a paper run: measured once, and again where what computes it has changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from ss_lens.core.files import sha256_of_json
from ss_lens.experiments.grid import Arm
from ss_lens.experiments.paper import capability as module

SETTING = SimpleNamespace(
    model="model", calibration="c", operator=None, identity={"train": "k"}, unsteered={"model": "w"}
)
ITEMS = pd.DataFrame({"task": ["t"], "item": [0], "metric": ["acc"], "score": [1.0]})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def scored(model: object) -> pd.DataFrame:
        calls.append(model)
        return ITEMS

    monkeypatch.setattr(module, "capability", scored)
    monkeypatch.setattr(module, "version", lambda name: "1")
    return calls


def test_items_are_measured_again_under_another_version_of_what_scores_them(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    bench: Any = SimpleNamespace(setting=lambda group: SETTING)
    arm = Arm(model="m", dataset="d")
    for known in ("1", "1", "2", "1"):
        monkeypatch.setattr(module, "version", lambda name, known=known: known)
        pd.testing.assert_frame_equal(module.items(bench, arm, None, tmp_path), ITEMS)
    assert len(measured) == 2


def test_items_of_an_earlier_version_are_measured_again_with_one_line(
    measured: list[Any], caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    key = sha256_of_json({"unsteered": SETTING.unsteered, "steering": None})
    (tmp_path / f"{key[:32]}.csv").write_text("task,item,metric,score\n")
    bench: Any = SimpleNamespace(setting=lambda group: SETTING)
    caplog.set_level("INFO", "ss_lens")
    assert len(module.items(bench, Arm(model="m", dataset="d"), None, tmp_path)) == 1
    assert caplog.messages == [
        "capability of an earlier version, which named no lm-eval, is measured again"
    ]
    module.items(bench, Arm(model="m", dataset="d"), None, tmp_path)
    assert len(caplog.messages) == len(measured) == 1
