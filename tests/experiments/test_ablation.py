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
from analyses import ablations as drawn, style
from ss_lens import AblationConfig, AblationResult, ContrastiveDataset, Store, UserError
from ss_lens.cli import tables as reports
from ss_lens.experiments.ablations.result import load_ablations
from ss_lens.experiments.ablations.run import run_ablations
from ss_lens.experiments.ablations.variants import FULL, METRICS, VARIANTS
from ss_lens.experiments.sweeps.run import run_sweep
from ss_lens.models.chat import ChatFormat
from ss_lens.scoring.refusal_score import refusal_score

sweep_work = importlib.import_module("ss_lens.experiments.worker")


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
        angles_deg=(0, 75, 120, 200),
        dev=2,
        test=2,
        draws=4,
        max_new_tokens=4,
    )


def test_workers_of_an_ablation_are_processes_of_its_sweeps(config: AblationConfig) -> None:
    for workers, cluster in ((1, None), (3, "local")):
        asked = replace(config, workers=workers)
        swept = asked.sweep([asked.grid(FULL)], "dev", ("refusal_score",))
        assert (swept.cluster, swept.workers) == (cluster, workers)


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
        patch.setattr("ss_lens.experiments.ablations.variants.CRITERION", LENIENT)
        return folder, run_ablations(config, folder, store=kept)


LENIENT = replace(
    importlib.import_module("ss_lens.experiments.ablations.variants").CRITERION,
    max_perplexity=None,
    max_repetition=None,
    max_collapsed=1.0,
)


def test_every_variant_is_in_the_table_or_among_the_problems(
    finished: tuple[Path, AblationResult],
) -> None:
    _, result = finished
    assert {*result.table["variant"]} | {*result.problems["variant"]} == {*VARIANTS}
    for _, rows in result.table.groupby(["variant", "prompt_class"]):
        assert rows["metric"].tolist() == [*METRICS]
    assert {*result.table["prompt_class"]} == {"positive", "negative"}
    draws = result.table.groupby("variant")["draws"].first()
    assert (draws[FULL], draws["random sites"], draws["random b2"]) == (1, 4, 2)


def test_each_variant_is_measured_at_the_angle_that_dev_chose_for_it(
    finished: tuple[Path, AblationResult],
) -> None:
    _, result = finished
    scores = result.scan.query("prompt_class == 'positive'")
    means = scores.groupby(["variant", "draw", "angle_deg"])["refusal_score"].mean()
    for variant, rows in result.table.groupby("variant"):
        draws = dict.fromkeys(scores.loc[scores["variant"] == variant, "draw"])
        best = [means.loc[(variant, draw)].idxmin() for draw in draws]
        assert [float(text) for text in rows["angles_deg"].iloc[0].split(", ")] == best


def test_a_collapsing_best_angle_gives_way_to_the_next(
    config: AblationConfig, kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As :func:`choose_angle` would choose with all angles before it."""
    ablations = importlib.import_module("ss_lens.experiments.ablations.variants")
    limits = replace(LENIENT, max_perplexity=200.0, max_collapsed=0.5)
    monkeypatch.setattr(ablations, "CRITERION", limits)
    monkeypatch.setattr(ablations, "VARIANTS", {FULL: {}, "all sites": {"selection": "uniform"}})
    result = run_ablations(config, tmp_path / "run", store=kept)
    scores: tuple[Any, ...] = ("refusal_score", "answers", "perplexity")
    for variant, rows in result.choices.groupby("variant"):
        whole = run_sweep(
            config.sweep([config.grid(str(variant))], "dev", scores), tmp_path / "all", store=kept
        )
        expected = ss_lens.choose_angle(whole.table, limits)
        assert rows.loc[rows["chosen"], "angle_deg"].tolist() == [expected.angle_deg]
        assert rows["collapsed"].tolist()[:-1] == [
            share for share in rows["collapsed"].tolist()[:-1] if share > 0.5
        ]


def test_test_prompts_are_measured_at_the_chosen_angles_and_no_other(
    finished: tuple[Path, AblationResult],
) -> None:
    """Nothing else is on disk either, so there is nothing to choose by afterwards."""
    folder, result = finished
    files = [*(folder / "cells").glob("*/*.parquet")]
    cells = pd.concat([pd.read_parquet(path).assign(key=path.parent.name) for path in files])
    dev = {*result.scan["prompt"]}
    of_test = cells.dropna(subset="prompt_index")
    of_test = of_test[~of_test["prompt"].isin(dev)]
    assert of_test.groupby("key")["angle_deg"].nunique().max() == 1
    chosen = result.choices.query("chosen")["angle_deg"]
    assert {*of_test["angle_deg"]} == {*chosen}


def test_the_controls_steer_as_many_sites_as_the_full_method(
    finished: tuple[Path, AblationResult],
) -> None:
    _, result = finished
    counts = result.table.groupby("variant")["n_sites"].first()
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
    rows = result.table[result.table["variant"] == FULL].set_index(["prompt_class", "metric"])
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

    monkeypatch.setattr("ss_lens.experiments.ablations.variants.CRITERION", LENIENT)
    monkeypatch.setattr(sweep_work, "measured", computed)
    again = run_ablations(config, folder, store=kept)
    loaded = load_ablations(folder)
    for other in (again, loaded):
        assert other.config == result.config
        for name in ("table", "scan", "choices", "problems"):
            pd.testing.assert_frame_equal(getattr(other, name), getattr(result, name))


def test_a_full_method_without_an_admissible_angle_is_an_error_that_says_so(
    config: AblationConfig, kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(LENIENT, max_perplexity=1.0 + 1e-9, max_collapsed=0.0)
    monkeypatch.setattr("ss_lens.experiments.ablations.variants.CRITERION", strict)
    with pytest.raises(UserError, match=r"full method has no admissible angle of 4.*other angles"):
        run_ablations(config, tmp_path / "run", store=kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws must be a whole number from 1 on; got 0"),
        ({"workers": 0}, "workers must be a whole number from 1 on"),
        ({"angles_deg": ()}, "angles_deg: this list is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"chat": "be brief"}, r"chat must be a ChatFormat\(system=...\); got 'be brief'"),
    ],
)
def test_bad_configurations(config: AblationConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(config, **change)


def test_a_file_of_the_user_among_the_results_is_refused_before_anything_is_measured(
    config: AblationConfig, tmp_path: Path
) -> None:
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds something that is not a result of an ablation"):
        run_ablations(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ablations"]


def test_the_chat_format_reaches_the_sweep_and_is_kept(config: AblationConfig) -> None:
    chat = ChatFormat(system="be brief", template_arguments={"enable_thinking": False})
    asked = replace(config, chat=chat)
    assert asked.sweep([asked.grid(FULL)], "dev", ("answers",)).chat == chat
    for one in (config, asked):
        assert AblationConfig.from_json(json.loads(json.dumps(one.as_json()))) == replace(
            one, angles_deg=tuple(one.angles_deg)
        )
    assert "chat" not in config.as_json()  # as earlier versions wrote it


def damaged(folder: Path) -> None:
    (folder / "ablations" / "table.parquet").write_bytes(b"PAR1")


def other_format(folder: Path) -> None:
    path = folder / "ablations" / "ablations.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damaged, "is damaged; run `ss-lens ablate` again"),
        (other_format, "has format 99, this version reads 1 and 2"),
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
        if trace.meta != style.EXPLAINS
        for variant, value in zip(trace.y, trace.x, strict=True)
    }
    rows = table.query("prompt_class == 'negative'")
    assert figure.layout.yaxis.categoryarray == tuple(dict.fromkeys(rows["variant"]))
    assert len(shown) == len(rows) == len(METRICS) * rows["variant"].nunique()
    for panel, metric in enumerate(METRICS, start=1):
        for row in rows[rows["metric"] == metric].to_dict("records"):
            value = shown[(f"x{panel if panel > 1 else ''}", row["variant"])]
            assert value == row["mean"] or pd.isna(row["mean"])


def test_the_polar_plot_closes_each_curve(finished: tuple[Path, AblationResult]) -> None:
    _, result = finished
    figure = drawn.polar(result.scan, variants=[FULL, "all sites"])
    assert len(figure.data) == 4
    for trace in figure.data:
        assert trace.theta[0] == trace.theta[-1]
        assert trace.r[0] == trace.r[-1]


def test_the_figures_are_written_from_the_folder_alone(
    finished: tuple[Path, AblationResult], tmp_path: Path
) -> None:
    folder, _ = finished
    drawn.main(folder, tmp_path, formats=["html"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"ablations_positive.html", "angle_polar.html", "angle_polar.csv"} <= names
    for path in tmp_path.glob("*.csv"):
        assert not {"prompt", "response"} & {*pd.read_csv(path).columns}, path


def test_the_command_line_prints_every_mean_with_its_interval(
    finished: tuple[Path, AblationResult], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = finished
    reports.print_ablations(result, folder, as_json=False)
    told = capsys.readouterr().out
    for variant in dict.fromkeys(result.table["variant"]):
        assert told.count(variant) >= 2  # classes
    row = result.table.query("metric == 'kl_mean' and prompt_class == 'positive'").iloc[0]
    assert f"{row['mean']:.2f}" in told
    assert f"[{row['low']:.2f}, {row['high']:.2f}]" in told
    reports.print_ablations(result, folder, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["table"]) == len(result.table)
    assert {row["variant"] for row in printed["table"]} == {*result.table["variant"]}
