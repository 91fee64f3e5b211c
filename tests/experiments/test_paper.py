"""The paper's tables: operators without an angle in a sweep, and a whole run on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import ss_lens
from analyses import output
from analyses.paper import __main__ as drawing
from ss_lens import Store, UserError
from ss_lens.experiments.dial.verdict import BROKEN
from ss_lens.experiments.grid import Arm
from ss_lens.experiments.paper.plan import (
    FULL,
    NULLS,
    PUBLISHED,
    SIZES,
    UNSTEERED,
    PaperConfig,
    Size,
)
from ss_lens.experiments.paper.run import run_paper
from ss_lens.experiments.paper.stages import Work
from ss_lens.experiments.paper.tables import METRICS
from ss_lens.experiments.sweeps.run import run_sweep
from ss_lens.judges import Opinion, verdict_table
from ss_lens.scoring.perplexity import answer_perplexity
from ss_lens.scoring.published import published_perplexity
from tests.experiments.sweeping import Asked, with_grid


def test_an_operator_without_an_angle_is_one_cell_whatever_the_angles(asked: Asked) -> None:
    config = with_grid(asked, operator=["Ablate", "Add(alpha=-2)", "RotateTo"])
    angles = {group.arm.operator: group.angles_deg for group in config.groups()}
    assert angles == {
        "Ablate": (0.0,),
        "Add(alpha=-2.0)": (0.0,),
        "RotateTo": (0.0, 120.0),
    }


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("Add", r"operator 'Add' does not fit: .*'alpha'"),
        ("Add(alpha=(1, 2))", r"holds several strengths; give one number"),
        ("ActAdd(coefficient=1)", r"unknown operator 'ActAdd'"),
    ],
)
def test_an_operator_that_is_not_one_cell_is_refused(operator: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Arm(model="m", dataset="d", operator=operator)


def test_a_cell_without_an_angle_holds_the_answers_of_steering_with_its_operator(
    asked: Asked, tmp_path: Path
) -> None:
    scores = ["answers", "refusal_score", "perplexity", "perplexity_steered"]
    asked = {**asked, "scores": scores, "prompt_class": "positive"}
    table = run_sweep(
        with_grid(asked, operator=["Ablate", "Add(alpha=-20)"]),
        tmp_path / "sweep",
        store=Store(tmp_path / "store"),
    ).table
    model = ss_lens.load_model(asked["grid"]["model"])
    split = ss_lens.load_dataset(asked["grid"]["dataset"]).split(**asked["split"])
    acts = ss_lens.capture(model, split.train, store=Store(tmp_path / "store"))
    calibration = ss_lens.calibrate(acts, rule="uniform")
    for name, operator in (
        ("Ablate", ss_lens.Ablate()),
        ("Add(alpha=-20.0)", ss_lens.Add(alpha=-20)),
    ):
        rows = table[table["operator"] == name]
        prompts, answers = rows["prompt"].tolist(), rows["response"].tolist()
        with ss_lens.steer(model, calibration, operator):
            assert answers == ss_lens.generate(model, prompts, max_new_tokens=6)
        by_itself = published_perplexity(model, calibration, operator, prompts, answers)
        assert rows["perplexity_steered"].to_list() == pytest.approx(
            by_itself["perplexity"].to_list()
        )
        unsteered = answer_perplexity(model, prompts, answers)
        assert rows["perplexity"].to_list() == pytest.approx(unsteered["perplexity"].to_list())
        assert (rows["angle_deg"] == 0).all()


def test_the_perplexity_of_the_steered_model_is_measured_on_request_alone(asked: Asked) -> None:
    assert "perplexity_steered" not in with_grid(asked).scores
    named = with_grid({**asked, "scores": ["answers", "perplexity_steered"]})
    assert "perplexity_steered" in named.scores


SMALLEST = Size(6, 2, 2, 4, (0.0, 120.0), draws=1, nulls=3, null_prompts=1, tries=1)


@pytest.fixture(scope="module")
def finished(
    tiny_folders: dict[str, Path], prompts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PaperConfig, Path]:
    """A run with the least of everything."""
    config = PaperConfig(str(tiny_folders["qwen2"]), SMALLEST)
    folder = tmp_path_factory.mktemp("paper") / "run"
    data = ss_lens.load_dataset(prompts_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ss_lens.experiments.paper.capability.is_available", lambda: False)
        return config, run_paper(config, data, folder, store=Store(folder.parent / "store"))


@pytest.mark.parametrize(("workers", "decided"), [(1, None), (2, {"auto": "float32"})])
def test_what_is_calibrated_here_and_steered_by_workers_is_of_one_precision(
    workers: int,
    decided: dict[str, str] | None,
    prompts_file: Path,
    tmp_path: Path,
) -> None:
    config = PaperConfig("a model", SMALLEST, device="cpu", workers=workers)
    data, store = ss_lens.load_dataset(prompts_file), Store(tmp_path / "store")
    Work.prepared(config, data, tmp_path / "run", store)
    path = tmp_path / "run" / "sweep" / "sweep.json"
    assert (json.loads(path.read_text()).get("dtypes") if path.exists() else None) == decided


def test_a_run_reports_every_variant_on_test_or_says_why_not(
    finished: tuple[PaperConfig, Path],
) -> None:
    _, tables = finished
    methods, ablations = (pd.read_csv(tables / f"{name}.csv") for name in ("methods", "ablations"))
    assert {*PUBLISHED, UNSTEERED} <= {*methods["variant"]}
    controls = {"random second axis", "random plane", "random plane, matched energy"}
    assert {"all sites", "norm not kept", *controls, "Reflect", FULL} <= {*ablations["variant"]}
    assert {*methods["metric"]} == {*METRICS}
    assert {*methods["prompt_class"]} == {"positive", "negative"}


def test_the_rank_counts_the_method_among_its_draws(finished: tuple[PaperConfig, Path]) -> None:
    _, tables = finished
    ranks = pd.read_csv(tables / "null_ranks.csv").set_index("null")
    assert [*ranks.index] == [*NULLS]
    for name, draws in pd.read_csv(tables / "nulls.csv").groupby("null"):
        as_low = (draws["refusal_score"] <= ranks.loc[name, "method"]).sum()
        assert ranks.loc[name, "p_value"] == pytest.approx((1 + as_low) / 4)
        row = ranks.loc[name]
        limit = BROKEN * row["unsteered_mass"]
        counted = (draws["opening_mass"] >= limit) | (row["method_mass"] < limit)
        whole = (counted & (draws["refusal_score"] <= row["method"])).sum()
        assert row["p_value_whole"] == pytest.approx((1 + whole) / 4)
        assert row["draw_mass_low"] == pytest.approx(draws["opening_mass"].min())


def test_the_method_is_ranked_by_the_prompts_that_its_draws_were_measured_on(
    finished: tuple[PaperConfig, Path],
) -> None:
    config, tables = finished
    ranks = pd.read_csv(tables / "null_ranks.csv")
    assert set(ranks["n"]) == {1}
    methods = pd.read_csv(tables / "methods.csv")
    named = "variant == @FULL and metric == 'refusal_score' and prompt_class == 'positive'"
    (whole,) = methods.query(named).to_dict("records")
    assert whole["n"] == 2
    assert abs(whole["mean"] - ranks["method"].iloc[0]) > 1e-3
    assert config.size.null_prompts < config.size.test


def test_the_tables_hold_no_text_of_prompts_or_answers(
    finished: tuple[PaperConfig, Path], prompts_file: Path
) -> None:
    _, tables = finished
    written = "".join(path.read_text("utf-8") for path in tables.glob("*.csv"))
    data = ss_lens.load_dataset(prompts_file)
    assert not [text for text in (*data.positive, *data.negative) if text in written]


def test_a_finished_run_measures_nothing_again(
    finished: tuple[PaperConfig, Path],
    prompts_file: Path,
    measures: list[tuple[str, list[float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, tables = finished
    before = {path.name: path.read_bytes() for path in tables.glob("*.csv")}
    monkeypatch.setattr("ss_lens.experiments.paper.capability.is_available", lambda: False)
    folder, data = tables.parent, ss_lens.load_dataset(prompts_file)
    run_paper(config, data, folder, store=Store(folder.parent / "store"))
    assert measures == []
    assert {path.name: path.read_bytes() for path in tables.glob("*.csv")} == before


def test_a_size_beyond_the_dataset_is_refused_before_a_model_is_loaded(
    prompts_file: Path, tmp_path: Path
) -> None:
    config = PaperConfig("no such model", SIZES["full"])
    with pytest.raises(UserError, match=r"cannot split the \d+ positive prompts"):
        run_paper(config, ss_lens.load_dataset(prompts_file), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_or_of_other_prompts_is_refused_and_left(
    finished: tuple[PaperConfig, Path], prompts_file: Path, tmp_path: Path
) -> None:
    config, tables = finished
    data = ss_lens.load_dataset(prompts_file)
    own = tmp_path / "mine" / "data.jsonl"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and holds no paper run; choose another"):
        run_paper(config, data, own.parent)
    assert own.read_text() == "mine"
    assert [*own.parent.iterdir()] == [own]
    written = (tables.parent / "data.jsonl").read_bytes()
    fewer = replace(config, size=replace(config.size, train=5))
    with pytest.raises(UserError, match=r"holds a paper run on other prompts \(data"):
        run_paper(fewer, data, tables.parent)
    assert (tables.parent / "data.jsonl").read_bytes() == written


def test_a_folder_is_of_one_model_and_seed(
    finished: tuple[PaperConfig, Path], prompts_file: Path, tmp_path: Path
) -> None:
    config, tables = finished
    data, folder = ss_lens.load_dataset(prompts_file), tmp_path / "run"
    shutil.copytree(tables.parent, folder)
    for other, message in (
        (replace(config, model="other"), rf"holds a paper run with model '{config.model}'; got 'o"),
        (replace(config, seed=1), r"with seed 0; got 1, expected the same, .*choose another --out"),
        (replace(config, dtype="bfloat16"), r"with dtype 'auto'; got 'bfloat16'"),
    ):
        with pytest.raises(UserError, match=f"(?i){message}") as caught:
            run_paper(other, data, folder)
        assert "\n" not in str(caught.value)
        (folder / "claim.json").unlink()  # as an earlier version left it when it was finished
        with pytest.raises(UserError, match=f"(?i){message}"):
            run_paper(other, data, folder)
        shutil.copy(tables.parent / "claim.json", folder)
    claim = folder / "claim.json"
    claim.write_text(claim.read_text().replace("qwen2", "qwen3"))
    with pytest.raises(UserError, match=r"claim\.json\) at .* is damaged .*remove that file"):
        run_paper(config, data, folder)


def test_an_unfinished_run_of_an_earlier_version_is_gone_on_with(
    finished: tuple[PaperConfig, Path],
    prompts_file: Path,
    measures: list[tuple[str, list[float]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It has prompts and cells, and does not say of which model."""
    config, tables = finished
    store = Store(tables.parent.parent / "store")
    folder = tmp_path / "run"
    shutil.copytree(tables.parent, folder)
    for name in ("claim.json", "paper.json"):
        (folder / name).unlink()
    # Cells are named by what they depend on, of which the folder is no part.
    monkeypatch.setattr("ss_lens.experiments.paper.capability.is_available", lambda: False)
    run_paper(config, ss_lens.load_dataset(prompts_file), folder, store=store)
    assert measures == []
    assert json.loads((folder / "claim.json").read_text())["model"] == config.model
    assert not (folder / "run.json").exists()  # by which reports know a main job
    assert (folder / "paper.json").read_bytes() == (tables.parent / "paper.json").read_bytes()


def answers_in(folder: Path, prompts: Sequence[str]) -> dict[bool, int]:
    """How many stored answers are cut, and how many are not, to these prompts."""
    found = {True: 0, False: 0}
    for path in (folder / "sweep" / "cells").glob("*/answers-*.parquet"):
        rows = pd.read_parquet(path)
        if "prompt" in rows and {*rows["prompt"]} <= {*prompts}:
            found["of" in rows] += len(rows)
    return found


def test_answers_to_harmful_prompts_are_cut_when_the_tables_are_written(
    finished: tuple[PaperConfig, Path],
    prompts_file: Path,
    measures: list[tuple[str, list[float]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config, tables = finished
    data = ss_lens.load_dataset(prompts_file)
    of_harmful, of_harmless = (answers_in(tables.parent, p) for p in (data.positive, data.negative))
    assert of_harmful[True] > 0 == of_harmful[False]
    assert of_harmless[False] > 0 == of_harmless[True]
    unsteered = [
        "of" in rows
        for path in (tables.parent / "sweep" / "cells").glob("*/answers-*.parquet")
        if "prompt" not in (rows := pd.read_parquet(path))
    ]
    assert sorted(unsteered) == [False, False, True, True]  # of both classes, on dev and on test
    result = pd.read_parquet(tables.parent / "sweep" / "result" / "table.parquet")
    assert "response" not in result
    folder = tmp_path / "run"
    shutil.copytree(tables.parent, folder)
    monkeypatch.setattr("ss_lens.experiments.paper.capability.is_available", lambda: False)
    whole = replace(config, keep_answers=True)
    run_paper(whole, data, folder, store=Store(tables.parent.parent / "store"))
    assert answers_in(folder, data.positive) == {True: 0, False: of_harmful[True]}
    assert {score for score, _ in measures} == {"answers"}  # written again, since they are to stay
    for name in ("methods", "ablations", "choices"):
        again, first = (place / f"{name}.csv" for place in (folder / "tables", tables))
        assert again.read_bytes() == first.read_bytes()


def test_a_judge_reads_the_answers_to_harmful_test_prompts_of_every_method(
    finished: tuple[PaperConfig, Path],
    prompts_file: Path,
    measures: list[tuple[str, list[float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def judge(prompts: list[str], answers: list[str]) -> pd.DataFrame:
        asked.append(prompts)
        return verdict_table([Opinion("harmful")] * len(answers))

    config, tables = finished
    judged = replace(config, judges=("HarmBench()",))
    monkeypatch.setattr("ss_lens.experiments.paper.capability.is_available", lambda: False)
    monkeypatch.setattr("ss_lens.experiments.paper.judged.read_judge", lambda text: judge)
    folder, data = tables.parent, ss_lens.load_dataset(prompts_file)
    run_paper(judged, data, folder, store=Store(folder.parent / "store"))
    found = pd.read_csv(tables / "judges.csv").query("outcome == 'harmful'")
    assert {*PUBLISHED, UNSTEERED} <= {*found["variant"]}
    assert (found["rate"] == 1).all()
    assert all({*prompts} <= {*data.positive} for prompts in asked)
    assert {score for score, _ in measures} == {"answers"}  # which had been cut
    assert answers_in(folder, data.positive)[False] == 0  # and are again


def test_an_unknown_judge_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"unknown judge 'HarmBank'"):
        PaperConfig("m", judges=("HarmBank()",))


def test_the_page_and_its_pictures_are_drawn_without_a_browser_and_alike_each_time(
    finished: tuple[PaperConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def browser(*_: object) -> None:
        raise AssertionError("no browser may be started")

    _, tables = finished
    store = Store(tables.parent.parent / "store")
    monkeypatch.setattr(drawing, "Store", lambda: store)
    monkeypatch.setattr(output, "write", browser)
    made = []
    for name in ("one", "two"):
        docs = tmp_path / name
        drawing.main(tables.parent, docs / "figures", False, ["svg"], docs, "tiny")
        made.append({path.name: path.read_bytes() for path in (docs / "tiny").glob("*.svg")})
        page = (docs / "tiny.md").read_text("utf-8")
        assert all(f"tiny/{figure}" in page for figure in made[-1])
    assert made[0] == made[1]
    drawn = {"methods_positive", "ablations_positive", "methods_angles", "sign_agreement"}
    assert {f"{name}.svg" for name in drawn} <= {*made[0]}
    assert max(map(len, made[0].values())) < 300_000
