"""The ablation table: every variant, chosen on dev and reported on test, resumable, drawn."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import ss_lens
from analyses import ablations as drawn
from ss_lens import AblationConfig, AblationResult, ContrastiveDataset, Store, UserError, reports
from ss_lens.ablations import FULL, METRICS, OWN, SAME, VARIANTS, load_ablations, run_ablations
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.sweeps import load_sweep

sweep_work = importlib.import_module("ss_lens.sweep_work")


@pytest.fixture(scope="module")
def config(
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> AblationConfig:
    """The tokenizer of this one tells refusal openings apart, and it has discriminative sites."""
    path = tmp_path_factory.mktemp("data") / "tiny.jsonl"
    rows = [
        {"prompt": prompt, "class": label}
        for label in ("positive", "negative")
        for prompt in getattr(tiny_data, label)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return AblationConfig(
        model=str(tiny_folders["qwen2"]),
        dataset=str(path),
        angles_deg=(0, 120),
        dev=2,
        test=2,
        draws=2,
        max_new_tokens=4,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def finished(
    config: AblationConfig, kept: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, AblationResult]:
    # A random model's answers are noise, so nothing may count as collapsed here.
    folder = tmp_path_factory.mktemp("ablations") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ss_lens.ablations.CRITERION", LENIENT)
        return folder, run_ablations(config, folder, store=kept)


LENIENT = replace(
    importlib.import_module("ss_lens.ablations").CRITERION,
    max_perplexity=None,
    max_repetition=None,
    max_collapsed=1.0,
)


def at(result: AblationResult, choice: str) -> pd.DataFrame:
    return result.table[result.table["at"] == choice]


def test_every_variant_is_in_the_table_or_among_the_problems(
    finished: tuple[Path, AblationResult],
) -> None:
    _, result = finished
    for _, rows in result.table.groupby("at"):
        assert {*rows["variant"]} | {*result.problems["variant"]} == {*VARIANTS}
        for _, of_variant in rows.groupby(["variant", "prompt_class"]):
            assert of_variant["metric"].tolist() == [*METRICS]
    assert {*result.table["prompt_class"]} == {"positive", "negative"}


def test_each_variant_is_measured_at_the_angle_that_dev_chose_for_it(
    finished: tuple[Path, AblationResult],
) -> None:
    _, result = finished
    own = at(result, OWN).query("metric == 'refusal_score'")
    scores = result.dev.query("prompt_class == 'positive'")
    for variant, rows in own.groupby("variant"):
        of_variant = scores[scores["variant"] == variant]
        means = of_variant.groupby(["draw", "angle_deg"])["refusal_score"].mean()
        best = [means.loc[draw].idxmin() for draw in dict.fromkeys(of_variant["draw"])]
        chosen = [float(text) for text in rows["angles_deg"].iloc[0].split(", ")]
        assert chosen == best
    same = at(result, SAME)
    assert same["angles_deg"].str.split(", ").explode().nunique() == 1


def test_test_prompts_are_measured_at_no_other_angle(
    finished: tuple[Path, AblationResult],
) -> None:
    """Nothing else is on disk either, so there is nothing to choose by afterwards."""
    folder, result = finished
    whole = load_sweep(folder)
    cells = [
        pd.read_parquet(path).assign(key=path.parent.name)
        for path in (folder / "cells").glob("*/answers-*.parquet")
        if "prompt_index" in pd.read_parquet(path)
    ]
    table = pd.concat(cells)
    dev = {*result.dev["prompt"]}
    of_test = table[~table["prompt"].isin(dev)]
    assert of_test.groupby("key")["angle_deg"].nunique().max() <= 2
    assert whole.config.parts == ("test",)


def test_the_controls_steer_as_many_sites_as_the_full_method(
    finished: tuple[Path, AblationResult],
) -> None:
    _, result = finished
    counts = at(result, OWN).groupby("variant")["n_sites"].first()
    for variant in VARIANTS:
        if variant.startswith(("random", "shuffled labels")) and "own" not in variant:
            assert {*counts[variant].split(", ")} == {counts[FULL]}, variant


def test_the_full_method_equals_a_run_by_hand(
    finished: tuple[Path, AblationResult], config: AblationConfig, kept: Store
) -> None:
    _, result = finished
    model = ss_lens.load_model(config.model)
    parts = ss_lens.load_dataset(config.dataset).split(dev=2, test=2, seed=0)
    calibration = ss_lens.calibrate(ss_lens.capture(model, parts.train, store=kept))
    rows = at(result, OWN)
    rows = rows[rows["variant"] == FULL].set_index(["prompt_class", "metric"])
    angle = float(rows["angles_deg"].iloc[0])
    for label in ("positive", "negative"):
        prompts = getattr(parts.test, label)
        with torch.inference_mode(), ss_lens.steer(model, calibration, ss_lens.RotateBy(angle)):
            expected = refusal_score(model, prompts)["refusal_score"].mean()
        assert rows.loc[(label, "refusal_score"), "mean"] == pytest.approx(expected, abs=1e-5)
        assert rows.loc[(label, "refusal_score"), "n"] == 2


def test_a_second_call_computes_nothing_and_says_the_same(
    finished: tuple[Path, AblationResult],
    config: AblationConfig,
    kept: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, result = finished

    def computed(*arguments: Any) -> None:
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr("ss_lens.ablations.CRITERION", LENIENT)
    monkeypatch.setattr(sweep_work, "measured", computed)
    again = run_ablations(config, folder, store=kept)
    loaded = load_ablations(folder)
    for other in (again, loaded):
        assert other.config == result.config
        for name in ("table", "dev", "problems"):
            pd.testing.assert_frame_equal(getattr(other, name), getattr(result, name))


def test_a_full_method_without_an_admissible_angle_is_an_error_that_says_so(
    config: AblationConfig, kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(LENIENT, max_perplexity=1.0 + 1e-9, max_collapsed=0.0)
    monkeypatch.setattr("ss_lens.ablations.CRITERION", strict)
    with pytest.raises(UserError, match=r"full method has no admissible angle of 2.*other angles"):
        run_ablations(config, tmp_path / "run", store=kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws must be a whole number from 1 on; got 0"),
        ({"workers": 0}, "workers must be a whole number from 1 on"),
        ({"angles_deg": ()}, "angles_deg: this list is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_bad_configurations(config: AblationConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(config, **change)


def damaged(folder: Path) -> None:
    (folder / "ablations" / "table.parquet").write_bytes(b"PAR1")


def other_format(folder: Path) -> None:
    path = folder / "ablations" / "ablations.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damaged, "is damaged; run `ss-lens ablate` again"),
        (other_format, "has format 99, this version reads 1"),
        (lambda folder: (folder / "ablations" / "ablations.json").unlink(), "there is no ablation"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_folders_that_cannot_be_read(
    finished: tuple[Path, AblationResult],
    tmp_path: Path,
    harm: Callable[[Path], object],
    message: str,
) -> None:
    folder, _ = finished
    shutil.copytree(folder / "ablations", tmp_path / "ablations")
    harm(tmp_path)
    with pytest.raises(UserError, match=message):
        load_ablations(tmp_path)


def test_the_forest_plot_shows_every_number_of_the_table(
    finished: tuple[Path, AblationResult],
) -> None:
    _, result = finished
    table = drawn.measure(result)
    figure = drawn.forest(table, "here", prompt_class="negative")
    shown = {
        (trace.xaxis, variant): value
        for trace in figure.data
        for variant, value in zip(trace.y, trace.x, strict=True)
    }
    rows = table.query("prompt_class == 'negative'")
    assert len(shown) == len(rows) == len(METRICS) * rows["variant"].nunique()
    for panel, metric in enumerate(METRICS, start=1):
        for row in rows[rows["metric"] == metric].to_dict("records"):
            value = shown[(f"x{panel if panel > 1 else ''}", row["variant"])]
            assert value == row["mean"] or pd.isna(row["mean"])


def test_the_polar_plot_closes_each_curve(finished: tuple[Path, AblationResult]) -> None:
    _, result = finished
    figure = drawn.polar(result.dev, variants=[FULL, "all sites"])
    assert len(figure.data) == 4
    for trace in figure.data:
        assert trace.theta[0] == trace.theta[-1]
        assert trace.r[0] == trace.r[-1]


def test_the_figures_are_written_from_the_folder_alone(
    finished: tuple[Path, AblationResult], tmp_path: Path
) -> None:
    folder, _ = finished
    drawn.main(folder, tmp_path, ["html"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"ablations_positive_own_angle.html", "angle_polar.html", "angle_polar.csv"} <= names


def test_the_command_line_prints_every_mean_with_its_interval(
    finished: tuple[Path, AblationResult], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = finished
    reports.print_ablations(result, folder, as_json=False)
    told = capsys.readouterr().out
    for variant in dict.fromkeys(result.table["variant"]):
        assert told.count(variant) >= 4  # two classes at two choices of the angle
    row = at(result, OWN).query("metric == 'kl_mean' and prompt_class == 'positive'").iloc[0]
    assert f"{row['mean']:.2f}" in told
    assert f"[{row['low']:.2f}, {row['high']:.2f}]" in told
    reports.print_ablations(result, folder, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["table"]) == len(result.table)
    assert {row["variant"] for row in printed["table"]} == {*result.table["variant"]}
