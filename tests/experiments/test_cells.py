"""Stored cells are never served wrong: what is changed, stale or of another form is made again."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ss_lens
from ss_lens import Store, UserError
from ss_lens.core.errors import NotApplicable
from ss_lens.experiments.cells import CellStore, at_angles_in_order, unfinished_angles
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.sweeps.result import load_sweep
from ss_lens.experiments.sweeps.run import run_sweep
from ss_lens.experiments.sweeps.tables import unsteered_by_class
from ss_lens.scoring import registry
from ss_lens.scoring.perplexity import answer_perplexity
from ss_lens.scoring.refusal_score import refusal_score
from tests.experiments.sweeping import Asked, with_grid

Calls = list[tuple[str, list[float]]]


@pytest.fixture
def swept(asked: Asked, tmp_path: Path) -> tuple[SweepConfig, Path, pd.DataFrame]:
    config = SweepConfig(**asked)
    return config, tmp_path / "sweep", run_sweep(config, tmp_path / "sweep").table


def rewritten(path: Path, **changes: Any) -> None:
    """The same file of an earlier version, which had no digest in its name."""
    table = pd.read_parquet(path).assign(**changes)
    name, batch, _ = path.name.removesuffix(".parquet").split("-")
    path.unlink()
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(arrow, path.with_name(f"{name}-{batch}.parquet"), write_page_checksum=True)


def test_perplexity_and_divergence_follow_the_answers_they_were_computed_on(
    swept: tuple[SweepConfig, Path, pd.DataFrame], measures: Calls, tiny_folders: dict[str, Path]
) -> None:
    """Answers that are computed again and differ take their perplexity with them."""
    config, folder, _ = swept
    cells, model = CellStore(folder), ss_lens.load_model(tiny_folders["qwen2"])
    (key, *_) = load_sweep(folder).groups["key"]
    answers = cells.read(key, "answers")
    cells.commit(key, "answers", answers.assign(response="another answer"))
    measures.clear()
    again = run_sweep(config, folder).table
    assert measures == [("perplexity", [0.0, 120.0])]
    rows = again.query("response == 'another answer'").reset_index(drop=True)
    assert len(rows) == len(answers)
    expected = answer_perplexity(model, rows["prompt"].tolist(), rows["response"].tolist())
    pd.testing.assert_frame_equal(rows[[*expected]], expected, rtol=1e-4)
    for home in (folder / "cells").iterdir():
        rows = cells.read(home.name, "answers")
        if "prompt_index" not in rows:  # the unsteered model's
            cells.commit(home.name, "answers", rows.assign(response="something else"))
    measures.clear()
    run_sweep(config, folder)
    assert measures == [("kl", [0.0, 120.0])] * 2


def test_a_flip_anywhere_in_a_cell_is_noticed_and_the_table_is_the_same(
    swept: tuple[SweepConfig, Path, pd.DataFrame],
) -> None:
    config, folder, table = swept
    generator = random.Random(0)
    for score in ("refusal_score", "answers", "perplexity", "kl"):
        for end in (True, False):  # the footer, where the names of columns stand, and the rest
            path = min((folder / "cells").glob(f"*/{score}-*.parquet"))
            data = bytearray(path.read_bytes())
            place = len(data) - generator.randint(9, 400) if end else generator.randrange(len(data))
            data[place] ^= 1 << generator.randrange(8)
            path.write_bytes(bytes(data))
            with pytest.warns(UserWarning, match="its checksum differs"):
                again = run_sweep(config, folder).table
            pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert run_sweep(config, folder).table.equals(table)  # without a warning


def test_exchanged_cells_are_noticed(swept: tuple[SweepConfig, Path, pd.DataFrame]) -> None:
    config, folder, table = swept
    one, other = [*(folder / "cells").glob("*/refusal_score-*.parquet")][:2]
    one_data, other_data = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_data)
    other.write_bytes(one_data)
    with pytest.warns(UserWarning, match="its checksum differs"):
        again = run_sweep(config, folder).table
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_cells_of_an_earlier_version_are_read_and_what_does_not_say_its_answers_is_made_again(
    swept: tuple[SweepConfig, Path, pd.DataFrame],
    measures: Calls,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, folder, table = swept
    for path in [*(folder / "cells").glob("*/*.parquet")]:
        rows = pd.read_parquet(path)
        rows = rows.assign(angle_deg=rows["angle_deg"] - 360)  # as −240 and −360 were written
        rows.drop(columns="of", errors="ignore").to_parquet(path)
        rewritten(path)
    caplog.set_level("INFO", "ss_lens")
    measures.clear()
    again = run_sweep(config, folder).table
    assert {score for score, _ in measures} == {"perplexity", "kl"}
    assert "perplexity of an earlier version is measured again" in caplog.text
    pd.testing.assert_frame_equal(again, table, rtol=1e-5)


def test_an_earlier_cell_with_other_columns_counts_as_damaged(
    swept: tuple[SweepConfig, Path, pd.DataFrame],
) -> None:
    config, folder, table = swept
    path = min((folder / "cells").glob("*/refusal_score-*.parquet"))
    rows = pd.read_parquet(path).rename(columns={"opening_mass": "opening_mast"})
    rows.to_parquet(path)
    rewritten(path)
    with pytest.warns(UserWarning, match="its columns are not those of the score"):
        again = run_sweep(config, folder).table
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_a_score_that_computes_other_numbers_is_measured_again_and_nothing_else(
    swept: tuple[SweepConfig, Path, pd.DataFrame],
    measures: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, folder, table = swept
    raised = tuple(
        replace(score, version=2) if score.name == "perplexity" else score
        for score in registry.scores()
    )
    monkeypatch.setattr(registry, "scores", lambda: raised)
    measures.clear()
    pd.testing.assert_frame_equal(run_sweep(config, folder).table, table)
    assert {name for name, _ in measures} == {"perplexity"}
    measures.clear()
    run_sweep(config, folder)
    assert measures == []


def test_angles_a_whole_turn_apart_are_one_cell(
    asked: Asked, tmp_path: Path, measures: Calls
) -> None:
    few = {**asked, "scores": "answers"}
    first = run_sweep(with_grid(few, angles_deg=[0, -90]), tmp_path)
    assert first.table["angle_deg"].unique().tolist() == [0.0, 270.0]
    measures.clear()
    second = run_sweep(with_grid(few, angles_deg=[360, 270, 630.5]), tmp_path)
    assert measures == [("answers", [270.5])] * 2
    assert second.table["angle_deg"].unique().tolist() == [0.0, 270.0, 270.5]


def test_a_users_file_in_the_result_is_kept_and_the_sweep_refused(
    swept: tuple[SweepConfig, Path, pd.DataFrame], measures: Calls
) -> None:
    config, folder, _ = swept
    mine = folder / "result" / "notes.txt"
    mine.write_text("mine")
    measures.clear()
    with pytest.raises(UserError, match="holds something that is not a result of a sweep"):
        run_sweep(with_grid({"grid": config.grid[0].model_dump()}, angles_deg=[7]), folder)
    assert mine.read_text() == "mine"
    assert not measures


def test_a_changed_result_is_refused(swept: tuple[SweepConfig, Path, pd.DataFrame]) -> None:
    config, folder, table = swept
    path = folder / "result" / "sweep.json"
    text = path.read_text()
    path.write_text(text.replace('"max_new_tokens": 6', '"max_new_tokens": 7'))
    with pytest.raises(UserError, match=r"result of the sweep at .* is damaged .*run the"):
        load_sweep(folder)
    path.write_text(text)
    table.iloc[:1].to_parquet(folder / "result" / "table.parquet")
    with (
        pytest.warns(UserWarning, match="its checksum differs"),
        pytest.raises(UserError, match="is damaged; run the sweep again"),
    ):
        load_sweep(folder)
    run_sweep(config, folder)
    pd.testing.assert_frame_equal(load_sweep(folder).table, table, check_exact=True)


def test_the_unsteered_model_has_rows_of_its_own(
    asked: Asked, tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    """0° of ``rotate_to`` turns every token to one angle; it is not the model without steering."""
    result = run_sweep(with_grid(asked, operator=["RotateTo", "RotateBy"]), tmp_path)
    plain, model = result.unsteered, ss_lens.load_model(tiny_folders["qwen2"])
    assert plain["angle_deg"].isna().all()
    assert plain["prompt_class"].tolist() == ["positive"] * 2 + ["negative"] * 2
    assert "kl_mean" not in plain
    for rows in (plain[:2], plain[2:]):
        prompts = rows["prompt"].tolist()
        texts = ss_lens.generate(model, prompts, max_new_tokens=6)
        assert rows["response"].tolist() == texts
        for expected in (refusal_score(model, prompts), answer_perplexity(model, prompts, texts)):
            pd.testing.assert_frame_equal(
                rows[[*expected]].reset_index(drop=True), expected, rtol=1e-4, atol=1e-5
            )
        of_class = result.table.query("angle_deg == 0 and prompt in @prompts")
        for operator, same in (("RotateBy", True), ("RotateTo", False)):
            scores = of_class.loc[of_class["operator"] == operator, "refusal_score"].to_numpy()
            assert (abs(scores - rows["refusal_score"].to_numpy()) < 1e-5).all() == same
    pd.testing.assert_frame_equal(load_sweep(tmp_path).unsteered, plain)
    assert unsteered_by_class(plain)["n"].tolist() == [2, 2]


def test_scores_that_are_not_numbers_end_the_sweep(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = importlib.import_module("ss_lens.scoring.registry")
    (score,) = scoring.parts_of("refusal_score")

    def undefined(given: Any) -> pd.DataFrame:
        return score.measure(given).assign(refusal_score=[float("nan"), 1.0, 1.0, 1.0])

    broken = type(score)(score.name, score.columns, score.needs, undefined, place=0)
    others = [other for other in scoring.scores() if other is not score]
    monkeypatch.setattr(scoring, "scores", lambda: (broken, *others))
    config = SweepConfig(**{**asked, "scores": "refusal_score"})
    with pytest.raises(UserError, match=r"refusal_score is nan for the prompt .* at 0°"):
        run_sweep(config, tmp_path)


def test_a_missing_package_ends_the_sweep_and_is_no_finding(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setitem(sys.modules, "geoopt", None)
    planes = ["Grassmann()", "PC1()"]
    config = with_grid({**asked, "scores": "refusal_score"}, plane=planes)
    with pytest.raises(UserError, match=r'pip install "ss_lens\[grassmann\]"'):
        run_sweep(config, tmp_path, store=store)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"model": "nowhere/at-all"}, r"model 'nowhere/at-all' could not be loaded"),
        ({"dataset": "gone.jsonl"}, r"there is no file gone\.jsonl"),
        ({"dataset": "{"}, r"line 1 of .* is not JSON"),
        ({"dataset": '{"prompt": "w1", "class": "harmful"}'}, r"has no negative prompt"),
        ({"plane": "Grassmann(steps=0)"}, r"steps must be"),
        ({"selection": "Discriminative(margin=5)"}, r"margin is a cosine from 0 to below 1"),
    ],
)
def test_what_is_wrong_with_the_input_ends_the_sweep_beside_an_arm_that_is_right(
    asked: Asked, tmp_path: Path, store: Store, grid: dict[str, str], message: str
) -> None:
    """It is no finding about the method, so it stands in no table as not applicable."""
    right = {**asked["grid"]}
    if str(grid.get("dataset", "")).startswith("{"):
        (tmp_path / "data.jsonl").write_text(grid["dataset"])
        grid = {"dataset": str(tmp_path / "data.jsonl")}
    with pytest.raises(UserError, match=message) as caught:
        run_sweep(
            SweepConfig(**{**asked, "scores": "refusal_score", "grid": [right, {**right, **grid}]}),
            tmp_path / "sweep",
            store=store,
        )
    assert not isinstance(caught.value, NotApplicable)
    assert not (tmp_path / "sweep" / "result").exists()


def test_a_chat_format_makes_other_cells_and_its_absence_keeps_the_keys(
    asked: Asked, tmp_path: Path
) -> None:
    few = {**asked, "scores": "refusal_score"}
    plain, default, changed = (
        run_sweep(SweepConfig(**{**few, **more}), tmp_path)
        for more in ({}, {"chat": {}}, {"chat": {"system": "be brief"}})
    )
    assert default.groups["key"].tolist() == plain.groups["key"].tolist()
    assert not {*changed.groups["key"]} & {*plain.groups["key"]}
    assert load_sweep(tmp_path).config == changed.config


def test_a_mark_of_another_shape_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("1.5")
    with pytest.raises(UserError, match="has format None, this version reads"):
        load_sweep(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "null", "5", '"1"', '{"format": [1]}', "{}"])
def test_a_sweep_file_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    for opened in (CellStore.claim, load_sweep):
        with pytest.raises(UserError, match=r"has format .*, this version reads"):
            opened(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"format": "1"}', '{"formau": 1}', "[]"])
def test_a_damaged_mark_is_written_again_and_no_cell_is_computed_again(
    swept: tuple[SweepConfig, Path, pd.DataFrame], measures: Calls, content: str
) -> None:
    config, folder, table = swept
    (folder / "sweep.json").write_text(content)
    measures.clear()
    with pytest.warns(UserWarning, match=r"sweep.json is damaged and is written again") as told:
        again = run_sweep(config, folder)
    assert len(told) == 1
    assert measures == []
    pd.testing.assert_frame_equal(again.table, table)
    pd.testing.assert_frame_equal(load_sweep(folder).table, table)


def test_a_damaged_mark_beside_what_no_sweep_writes_is_refused_and_kept(tmp_path: Path) -> None:
    for names in ((), ("cells", "my notes")):
        place = tmp_path / str(len(names))
        for name in names:
            (place / name).mkdir(parents=True)
        place.mkdir(exist_ok=True)
        (place / "sweep.json").write_text("mine")
        with pytest.raises(UserError, match=r"is damaged .*; run the same command again"):
            CellStore.claim(place)
        assert (place / "sweep.json").read_text() == "mine"


def test_a_folder_in_place_of_a_cell_is_one_clear_error(
    swept: tuple[SweepConfig, Path, pd.DataFrame],
) -> None:
    config, folder, _ = swept
    path = min((folder / "cells").glob("*/answers-*.parquet"))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"is a folder, and a file would be put .*remove it"):
        run_sweep(config, folder)
    path.rmdir()
    run_sweep(config, folder)


def test_what_a_killed_claim_left_is_removed_by_the_next(tmp_path: Path) -> None:
    CellStore.claim(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    with subprocess.Popen([sys.executable, "-c", _LEFT, str(tmp_path)]) as killed:
        killed.wait()
    assert {path.name for path in tmp_path.iterdir()} > kept
    CellStore.claim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


_LEFT = """
import os, sys
from pathlib import Path
from ss_lens.core.replace import new_holder
new_holder(Path(sys.argv[1]) / "sweep.json")
os._exit(9)
"""


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / "loop" / "x", Path("/proc/x")):
        with pytest.raises(UserError, match="choose another"):
            CellStore.claim(place)


def rows_at(*places: tuple[int, float, str]) -> pd.DataFrame:
    columns = ["prompt_index", "angle_deg", "response"]
    return pd.DataFrame([*places], columns=columns).assign(prompt="p")


def test_rows_come_by_prompt_and_then_as_the_angles_were_asked_for() -> None:
    rows = rows_at((1, 90, "d"), (0, 90, "b"), (0, 0, "a"), (1, 0, "c"), (0, 45, "x"))
    found = at_angles_in_order(rows, [90.0, 0.0])
    assert found["response"].tolist() == ["b", "a", "d", "c"]
    assert [*found] == [*rows]
    assert at_angles_in_order(rows, [180.0]).empty


def test_a_repeated_row_counts_once_and_the_first_one_counts() -> None:
    """Two processes without working locks finish a cell in batches of their own."""
    rows = rows_at((0, 0, "a"), (0, 0, "again"), (0, 90, "b"), (1, 90, "c"))
    assert at_angles_in_order(rows, [0.0])["response"].tolist() == ["a"]
    assert unfinished_angles(rows, [90.0, 0.0, 45.0], n_prompts=2) == [0.0, 45.0]
    assert unfinished_angles(rows.iloc[:0], [90.0], n_prompts=1) == [90.0]
