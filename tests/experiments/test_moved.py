"""What is stored of moved tokens is what a trace says; it is kept, and runs from before lack it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, RotateBy, Run, RunConfig, Store, Trace
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.experiments.dial import moved as module
from ss_lens.experiments.dial.folder import MOVED, load_run
from ss_lens.experiments.dial.moved import MOVED_COLUMNS
from ss_lens.models.chat import tokenize
from ss_lens.steering.trace import moved

CONFIG = RunConfig(angles_deg=(0, 120), dev=2, test=2, max_new_tokens=3, rule="uniform", draws=1)


@pytest.fixture(scope="module")
def finished(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Run, Store]:
    root = tmp_path_factory.mktemp("moved")
    store, model = Store(root / "store"), tiny_models["qwen2"]
    run = ss_lens.run_main_job(model, tiny_data, root / "run", CONFIG, store=store)
    return root / "run", run, store


def test_each_token_of_prompt_and_answer_has_its_mean_move_over_the_steered_sites(
    finished: tuple[Path, Run, Store], tiny_models: dict[str, TransformerBridge]
) -> None:
    _, run, _ = finished
    model = tiny_models["qwen2"]
    assert tuple(run.moved) == MOVED_COLUMNS
    angles = sorted({*run.responses["angle_deg"]} - {0.0})
    assert run.moved["angle_deg"].tolist() == angles * 2
    for row in run.moved.to_dict("records"):
        (start,) = tokenize(model, [row["prompt"]])
        tokens, values = json.loads(row["tokens"]), json.loads(row["moved"])
        assert row["n_prompt"] == len(start)
        assert len(start) <= len(tokens) == len(values) <= len(start) + 3
        trace = Trace()
        with ss_lens.steer(model, run.calibration, RotateBy(row["angle_deg"]), trace=trace):
            ss_lens.generate(model, [row["prompt"]], max_new_tokens=1)
        frame = trace.frame()
        expected = frame.assign(moved=moved(frame)).groupby("position")["moved"].mean()
        np.testing.assert_allclose(values[: len(start)], 1000 * expected[: len(start)], atol=2)


def test_a_rotation_moves_by_twice_the_sine_of_its_half() -> None:
    angles = np.array([0.0, 60.0, 180.0])
    frame = pd.DataFrame(
        {
            "in_plane_norm_before": 3.0, "in_plane_norm_after": 3.0, "norm_before": 5.0,
            "angle_before_deg": 350.0, "angle_after_deg": (350 + angles) % 360,
        }
    )  # fmt: skip
    expected = 2 * 3 / 5 * np.sin(np.deg2rad(angles) / 2)
    np.testing.assert_allclose(moved(frame), expected, atol=1e-12)
    still = frame.assign(in_plane_norm_before=0.0, in_plane_norm_after=0.0)
    still = still.assign(angle_before_deg=math.nan, angle_after_deg=math.nan)
    assert (moved(still) == 0).all()


def test_it_is_kept_and_not_read_twice(
    finished: tuple[Path, Run, Store],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, run, store = finished
    pd.testing.assert_frame_equal(load_run(folder).moved, run.moved, check_dtype=False)

    def refused(*_: object) -> None:
        raise AssertionError("what is finished is not computed again")

    monkeypatch.setattr(module, "_read", refused)
    again = ss_lens.run_main_job(tiny_models["qwen2"], tiny_data, folder, CONFIG, store=store)
    pd.testing.assert_frame_equal(again.moved, run.moved)


def test_a_run_from_before_is_read_without_it(
    finished: tuple[Path, Run, Store], tmp_path: Path
) -> None:
    folder, run, _ = finished
    for path in folder.iterdir():
        if path.is_file() and path.name != MOVED:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    run.calibration.save(tmp_path / "calibration")
    told = read_sealed_json(tmp_path / "tables.json", "tables", remedy="")
    (tmp_path / "tables.json").unlink()
    write_sealed_json(
        tmp_path / "tables.json", {k: v for k, v in told.items() if k not in (MOVED, "sha256")}
    )
    assert load_run(tmp_path).moved.empty
