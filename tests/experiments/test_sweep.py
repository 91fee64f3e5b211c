"""Sweeps: every cell once, whoever computes it, however often it is killed, to the same table."""

from __future__ import annotations

import errno
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, Store, UserError
from ss_lens.cli import tables as reports
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.inputs import shuffled
from ss_lens.experiments.sweeps.result import load_sweep
from ss_lens.experiments.sweeps.run import run_sweep
from ss_lens.experiments.sweeps.tables import by_cell
from ss_lens.scoring.coherence import compression_ratio
from ss_lens.scoring.divergence import kl_divergence
from ss_lens.scoring.perplexity import answer_perplexity
from ss_lens.scoring.refusal import contains_refusal, counts_by_phrases, opens_with_refusal
from ss_lens.scoring.refusal_score import refusal_score
from tests.experiments.sweeping import Asked, batches, with_grid

sweep_work = importlib.import_module("ss_lens.experiments.worker")


def test_a_sweep_equals_one_operator_at_a_time(
    asked: Asked, tiny_folders: dict[str, Path], prompts_file: Path, tmp_path: Path, store: Store
) -> None:
    config = with_grid(asked, operator=["RotateBy", "SetAngle(magnitude=3)"], angles_deg=[0, 75])
    table = run_sweep(config, tmp_path / "sweep", store=store).table
    model = ss_lens.load_model(tiny_folders["qwen2"])
    parts = ss_lens.load_dataset(prompts_file).split(dev=2, test=2, seed=0)
    acts = ss_lens.capture(model, parts.train, store=store)
    calibration = ss_lens.calibrate(acts, rule="uniform")
    assert len(table) == 2 * 2 * 2 * 2
    operators = {"RotateBy": ss_lens.RotateBy, "SetAngle(magnitude=3.0)": ss_lens.SetAngle}
    for (name, label, angle), rows in table.groupby(["operator", "prompt_class", "angle_deg"]):
        prompts = list(getattr(parts.test, str(label)))
        more = {"magnitude": 3} if name != "RotateBy" else {}
        operator = operators[str(name)](angle_deg=float(angle), **more)
        unsteered = ss_lens.generate(model, prompts, max_new_tokens=6)
        with ss_lens.steer(model, calibration, operator):
            texts = ss_lens.generate(model, prompts, max_new_tokens=6)
            scores = refusal_score(model, prompts)
        assert rows["prompt"].tolist() == prompts
        assert rows["response"].tolist() == texts
        labels = ss_lens.classify_refusal(texts, prompts)["label"]
        assert rows["refused"].tolist() == (labels != "none").tolist()
        assert rows["refused_phrases"].tolist() == [opens_with_refusal(text) for text in texts]
        assert rows["refused_published"].tolist() == [contains_refusal(text) for text in texts]
        assert rows["compression_ratio"].tolist() == [compression_ratio(text) for text in texts]
        for expected in (
            scores,
            answer_perplexity(model, prompts, texts),
            kl_divergence(model, calibration, operator, prompts, unsteered).drop(
                columns="n_tokens"
            ),
        ):
            pd.testing.assert_frame_equal(
                rows[[*expected]].reset_index(drop=True), expected, rtol=1e-4, atol=1e-5
            )


def test_the_same_configuration_gives_the_identical_table_and_it_reads_back(
    asked: Asked, tmp_path: Path
) -> None:
    first, second = (
        run_sweep(SweepConfig(**asked), tmp_path / name, store=Store(tmp_path / f"store {name}"))
        for name in ("first", "second")
    )
    pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)
    loaded = load_sweep(tmp_path / "first")
    pd.testing.assert_frame_equal(loaded.table, first.table, check_exact=True)
    pd.testing.assert_frame_equal(loaded.groups, first.groups)
    assert loaded.config == first.config
    assert loaded.choices == first.choices == ()


def test_a_result_that_counts_refusals_by_phrases_says_so(
    asked: Asked, tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    made = run_sweep(SweepConfig(**asked), tmp_path / "sweep", store=store)
    assert not counts_by_phrases(made.table)
    result = tmp_path / "sweep" / "result"
    values = json.loads((result / "sweep.json").read_text())
    for name in ("sha256", "tables", "refused_by"):  # as an earlier version wrote it
        del values[name]
    (result / "sweep.json").write_text(json.dumps(values))
    for path in result.glob("*.parquet"):
        table = pd.read_parquet(path)
        table.drop(columns="refused_phrases", errors="ignore").to_parquet(path)
    with caplog.at_level("INFO", "ss_lens"):
        assert counts_by_phrases(load_sweep(tmp_path / "sweep").table)
    (line,) = [line for line in caplog.messages if "phrases" in line]
    assert line.endswith("as earlier versions did; run the sweep again, which is quick")


def test_a_repeated_sweep_measures_nothing(
    asked: Asked, tmp_path: Path, measures: list[tuple[str, list[float]]]
) -> None:
    first = run_sweep(SweepConfig(**asked), tmp_path)
    assert len(measures) == 2 * 4
    measures.clear()
    again = run_sweep(SweepConfig(**asked), tmp_path)
    assert measures == []
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)


def test_a_changed_grid_measures_only_what_is_new(
    asked: Asked, tmp_path: Path, measures: list[tuple[str, list[float]]]
) -> None:
    first = run_sweep(SweepConfig(**{**asked, "scores": ["answers"]}), tmp_path)
    assert measures == [("answers", [0.0, 120.0])] * 2
    measures.clear()
    more = with_grid({**asked, "scores": ["answers"]}, angles_deg=[0, 60, 120])
    second = run_sweep(more, tmp_path)
    assert measures == [("answers", [60.0])] * 2
    assert second.table["angle_deg"].tolist() == [0.0, 60.0, 120.0] * 4
    old = second.table.query("angle_deg != 60").reset_index(drop=True)
    pd.testing.assert_frame_equal(old, first.table, check_exact=True)
    measures.clear()
    run_sweep(with_grid({**asked, "scores": ["answers", "kl"]}, selection=["uniform"]), tmp_path)
    assert measures == [("kl", [0.0, 120.0])] * 2
    measures.clear()
    wider = with_grid({**asked, "scores": "answers"}, selection=["uniform", "Half(which='first')"])
    run_sweep(wider, tmp_path)
    assert measures == [("answers", [0.0, 120.0])] * 2


def test_a_sweep_of_the_first_prompts_is_those_rows_of_the_whole_one(
    asked: Asked, tmp_path: Path, store: Store
) -> None:
    config = with_grid({**asked, "scores": ["answers"]}, angles_deg=[0, 75])
    whole = run_sweep(config, tmp_path / "whole", store=store)
    few = config.model_copy(update={"first_prompts": 1})
    table = run_sweep(few, tmp_path / "few", store=store).table
    expected = whole.table[whole.table["prompt_index"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected)
    pd.testing.assert_frame_equal(load_sweep(tmp_path / "few").table, expected)


def test_other_weights_under_the_same_name_are_another_key(
    asked: Asked, tiny_folders: dict[str, Path], tmp_path: Path, store: Store
) -> None:
    link = tmp_path / "model"
    config = with_grid({**asked, "scores": ["answers"]}, model=str(link))
    keys = []
    for name in ("qwen2", "llama"):
        link.unlink(missing_ok=True)
        link.symlink_to(tiny_folders[name])
        keys.append(run_sweep(config, tmp_path / "sweep", store=store).groups["key"].tolist())
    assert not {*keys[0]} & {*keys[1]}


def test_shuffled_labels_give_what_capturing_the_shuffled_dataset_gives(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    for paired in (False, True):
        data = ContrastiveDataset("tiny", tiny_data.positive, tiny_data.negative, paired)
        made = shuffled(acts, data, tiny_llama, seed=3)
        again = shuffled(acts, data, tiny_llama, seed=3)
        other = shuffled(acts, data, tiny_llama, seed=4)
        assert made.spec.key == again.spec.key != other.spec.key
        rows = [tuple(row) for row in acts.positive[:, -1].tolist()]
        rows += [tuple(row) for row in acts.negative[:, -1].tolist()]
        prompts = (*data.positive, *data.negative)
        moved = [tuple(row) for row in made.positive[:, -1].tolist()]
        moved += [tuple(row) for row in made.negative[:, -1].tolist()]
        order = [rows.index(row) for row in moved]
        assert sorted(order) == list(range(24)) != order
        if paired:  # partners stay partners
            assert all(i % 12 == place % 12 for place, i in enumerate(order))
        redrawn = ContrastiveDataset(
            "redrawn", *(tuple(prompts[i] for i in part) for part in (order[:12], order[12:]))
        )
        captured = ss_lens.capture(tiny_llama, redrawn, store=store)
        assert captured.spec.key == made.spec.key


def test_shuffled_labels_and_drawn_choices_are_measured_for_each_seed_and_others_once(
    asked: Asked, tmp_path: Path
) -> None:
    config = with_grid(
        {**asked, "scores": "refusal_score", "prompt_class": "positive"},
        labels=[True, "shuffled"],
        selection=["uniform", "RandomSites(seed={seed}, count=2)"],
        seed=[5, 6],
        angles_deg=90,
    )
    result = run_sweep(config, tmp_path)
    arms = result.groups[["selection", "labels", "seed"]].astype(object)
    drawn = "RandomSites(seed={}, count=2)"
    assert [tuple(arm) for arm in arms.where(arms.notna(), None).to_numpy()] == [
        ("uniform", "true", None),
        ("uniform", "shuffled", 5),
        ("uniform", "shuffled", 6),
        (drawn.format(5), "true", 5),
        (drawn.format(6), "true", 6),
        (drawn.format(5), "shuffled", 5),
        (drawn.format(6), "shuffled", 6),
    ]
    assert result.groups["n_sites"].tolist() == [6, 6, 6, 2, 2, 2, 2]
    means = by_cell(result.table)
    assert means["n"].tolist() == [2] * 7
    assert means["refusal_score"].nunique() == 7
    pd.testing.assert_series_equal(load_sweep(tmp_path).table["seed"], result.table["seed"])


def test_an_arm_that_cannot_be_calibrated_is_told_and_the_others_are_measured(
    asked: Asked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_grid({**asked, "scores": "refusal_score"}, selection=["TopK(k=99)", "uniform"])
    result = run_sweep(config, tmp_path)
    assert result.table["selection"].unique().tolist() == ["uniform"]
    problems = result.groups.set_index("selection")["problem"]
    assert problems["TopK(k=99)"].str.contains("more than the 6 calibrated sites").all()
    assert problems["uniform"].isna().all()
    assert "not computed" in caplog.text
    with pytest.raises(UserError, match="no arm can be calibrated; the first says: k=99"):
        run_sweep(with_grid(asked, selection="TopK(k=99)"), tmp_path)


CHOOSE = {
    "score": "refusal_score",
    "goal": "minimise",
    "max_perplexity": None,
    "max_repetition": 0.9,
    "max_collapsed": 1,
}


def test_the_angle_is_chosen_on_dev_and_test_is_measured_there_alone(
    asked: Asked, tmp_path: Path
) -> None:
    config = with_grid({**asked, "choose": CHOOSE, "parts": "dev"}, angles_deg=[0, 90, 180, 270])
    result = run_sweep(config, tmp_path)
    (made,) = result.choices
    dev = by_cell(result.table.query("part == 'dev' and prompt_class == 'positive'"))
    best = dev.loc[dev["refusal_score"].idxmin(), "angle_deg"]
    assert made.choice.angle_deg == best
    test = result.table.query("part == 'test'")
    assert test["angle_deg"].unique().tolist() == [best]
    shown = test.query("prompt_class == 'positive'")["refusal_score"].mean()
    assert made.choice.test["score"].tolist() == pytest.approx([shown])
    (loaded,) = load_sweep(tmp_path).choices
    assert loaded.arm == made.arm
    assert loaded.choice.angle_deg == best
    pd.testing.assert_frame_equal(loaded.choice.dev, made.choice.dev)
    pd.testing.assert_frame_equal(loaded.choice.test, made.choice.test)
    both = run_sweep(
        SweepConfig(**{**config.model_dump(mode="json"), "parts": ["dev", "test"]}),
        tmp_path / "both",
    )
    assert both.choices[0].choice.angle_deg == best
    assert both.choices[0].choice.test["score"].tolist() == pytest.approx([shown], abs=1e-4)


def test_an_interrupted_sweep_keeps_what_is_finished(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure: Callable[..., pd.DataFrame] = sweep_work.measured

    def interrupted(score: str, *others: Any) -> pd.DataFrame:
        if score == "perplexity":
            raise KeyboardInterrupt
        return measure(score, *others)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_work, "measured", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(SweepConfig(**asked), tmp_path)
    kept = batches(tmp_path)
    assert len(kept) == 2  # refusal scores and answers of the first group
    with pytest.raises(UserError, match="is not finished; run it again"):
        load_sweep(tmp_path)
    run_sweep(SweepConfig(**asked), tmp_path)
    assert kept.items() <= batches(tmp_path).items()


def test_a_full_disk_is_one_clear_error_and_finished_cells_are_kept(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def fill_up(path: Path, data: bytes) -> int:
        if path.name.startswith("perplexity-"):
            write(path, b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill_up)
        with pytest.raises(UserError, match=r"no space left under .*finished is kept"):
            run_sweep(SweepConfig(**asked), tmp_path)
    kept = batches(tmp_path)
    assert [Path(name).name.split("-")[0] for name in kept] == ["answers", "refusal_score"]
    run_sweep(SweepConfig(**asked), tmp_path)
    assert kept.items() <= batches(tmp_path).items()


def test_a_damaged_file_is_noticed_and_measured_again(
    asked: Asked, tmp_path: Path, measures: list[tuple[str, list[float]]]
) -> None:
    config = SweepConfig(**{**asked, "scores": "answers"})
    first = run_sweep(config, tmp_path)
    key = first.groups["key"].min()  # not the unsteered model's, which lies beside the arms'
    path = min((tmp_path / "cells" / key).glob("answers-*.parquet"))
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(bytes(data))
    measures.clear()
    with pytest.warns(UserWarning, match=r"answers-.*parquet is damaged .*counts as absent"):
        again = run_sweep(config, tmp_path)
    assert len(measures) == 1
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    (tmp_path / "result" / "table.parquet").write_bytes(b"PAR1")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(UserError, match=r"result at .* is damaged; run the sweep again"),
    ):
        load_sweep(tmp_path)


def test_a_folder_of_another_format_or_with_other_things_is_refused(
    asked: Asked, tmp_path: Path
) -> None:
    config = SweepConfig(**asked)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"{place} is a file or below one; choose another"):
            run_sweep(config, place)
    with pytest.raises(UserError, match="is not empty and holds no sweep; choose another"):
        run_sweep(config, tmp_path)
    with pytest.raises(UserError, match=r"no sweep \(sweep.json\) at"):
        load_sweep(tmp_path / "nowhere")
    old = tmp_path / "old"
    old.mkdir()
    (old / "sweep.json").write_text('{"format": 0}')
    for use in (lambda: run_sweep(config, old), lambda: load_sweep(old)):
        with pytest.raises(UserError, match="has format 0, this version reads 1; choose another"):
            use()


def test_a_prompt_beyond_the_context_is_an_error_before_answers(
    asked: Asked, tmp_path: Path
) -> None:
    config = SweepConfig(**{**asked, "max_new_tokens": 300, "scores": ["answers"]})
    with pytest.raises(UserError, match=r"and 300 new ones; the context of .* is 256"):
        run_sweep(config, tmp_path)


def test_the_command_line_prints_every_cell_the_choice_and_what_failed(
    asked: Asked, tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    grids = [asked["grid"], {**asked["grid"], "selection": "Explicit(sites='L99.ln1_out')"}]
    choose = {"score": "refusal_score", "goal": "minimise", "max_perplexity": None}
    choose |= {"max_repetition": None, "max_collapsed": 1}
    config = {**asked, "grid": grids, "parts": "dev", "choose": choose}
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    swept = run_sweep(ss_lens.load_sweep_config(path), tmp_path / "out", store=store)
    reports.print_sweep(swept, tmp_path / "out", as_json=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "not computed: Explicit(sites='L99.ln1_out'): L99.ln1_out is not a calibrated" in told
    assert f"chosen on dev for uniform: {swept.choices[0].choice}" in told
    reports.print_sweep(swept, tmp_path / "out", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    cells = by_cell(swept.table)
    assert [row["refusal_score"] for row in printed["cells"]] == pytest.approx(
        cells["refusal_score"].tolist()
    )
    assert printed["choices"][0]["angle_deg"] == swept.choices[0].choice.angle_deg
    assert len(printed["problems"]) == 1
