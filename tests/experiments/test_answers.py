"""Answers that were cut: nothing is measured again, and nothing is computed from what is left."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ss_lens import Store
from ss_lens.experiments.answers import OF, cut_answers, first_words
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.sweeps.result import SweepResult
from ss_lens.experiments.sweeps.run import run_sweep
from ss_lens.scoring.registry import ANSWERS, TEXTS, stored_name
from tests.experiments.sweeping import Asked, with_grid

worker = importlib.import_module("ss_lens.experiments.worker")
Calls = list[tuple[str, list[float]]]


def words(prompt: str, angle: float) -> str:
    return f"Sure, {prompt} at {angle:g} takes a few more words than six, whatever {prompt} is"


@pytest.fixture(autouse=True)
def worded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words in place of the random bytes that the tiny model writes."""
    written = worker.sweep_angles

    def answered(*arguments: Any, **options: Any) -> pd.DataFrame:
        rows = written(*arguments, **options)
        texts = map(words, rows["prompt"], rows["angle_deg"])
        return rows.assign(response=[*texts])

    def generated(model: object, prompts: Sequence[str], **_: object) -> list[str]:
        return [words(prompt, 999) for prompt in prompts]

    monkeypatch.setattr(worker, "sweep_angles", answered)
    monkeypatch.setattr(worker, "generate", generated)


SCORES = ["answers", "perplexity", "kl", "refusal_score"]


class Swept:
    """A finished sweep, and one like it whose answers to harmful prompts were cut."""

    def __init__(self, asked: Asked, place: Path) -> None:
        self.asked, self.place = {**asked, "scores": SCORES}, place
        self.store = Store(place / "store")
        self.whole = self.run("whole")
        shutil.copytree(place / "whole", place / "cut")
        self.cells = CellStore(place / "cut")
        self.cut()

    def config(self, **changes: Any) -> SweepConfig:
        return with_grid({**self.asked, **changes})

    def run(self, name: str, **changes: Any) -> SweepResult:
        return run_sweep(self.config(**changes), self.place / name, store=self.store)

    @property
    def harmful(self) -> set[str]:
        """Digests of the harmful prompts; those of the others were not cut."""
        keys = self.whole.groups.query("prompt_class == 'positive'")["key"]
        homes = [self.place / "whole" / "cells" / key for key in keys]
        return {json.loads((home / "identity.json").read_text())["tokens"] for home in homes}

    def cut(self) -> None:
        cut_answers(self.cells, self.harmful)


@pytest.fixture
def swept(asked: Asked, tmp_path: Path) -> Swept:
    return Swept(asked, tmp_path)


def but_texts(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="response")


def assert_alike(got: SweepResult, want: SweepResult, *, cut: bool, least: int = 60) -> None:
    """The same numbers; answers to harmful prompts as their first words, or whole."""
    for name in ("table", "unsteered"):
        one, other = getattr(got, name), getattr(want, name)
        pd.testing.assert_frame_equal(but_texts(one), but_texts(other))
        harmful = (other["prompt_class"] == "positive") & cut
        texts = other["response"].where(~harmful, other["response"].map(first_words))
        assert one["response"].tolist() == texts.tolist()
    assert want.table["response"].map(len).min() >= least


def test_nothing_is_measured_again_where_answers_were_cut(swept: Swept, measures: Calls) -> None:
    measures.clear()
    assert_alike(swept.run("cut"), swept.whole, cut=True)
    assert measures == []


def test_no_whole_answer_to_a_harmful_prompt_is_left_anywhere(swept: Swept) -> None:
    swept.run("cut")
    harmful = swept.whole.table.query("prompt_class == 'positive'")
    whole = [words(p, a) for p in harmful["prompt"].unique() for a in (0, 120, 999)]
    left = 0
    for path in (swept.place / "cut").rglob("*.parquet"):
        table = pd.read_parquet(path)
        if "response" in table:
            texts = table["response"].tolist()
            assert not {*whole} & {*texts}
            left += len(texts)
    assert left > 0


def test_cutting_again_or_after_a_kill_changes_nothing(swept: Swept, measures: Calls) -> None:
    files = {path: path.read_bytes() for path in swept.cells.folder.rglob("*.parquet")}
    swept.cut()
    assert files == {path: path.read_bytes() for path in swept.cells.folder.rglob("*.parquet")}
    # Killed between the scores and the texts: the scores are there, and the answers are whole.
    for path in swept.cells.folder.glob(f"cells/*/{ANSWERS}-*.parquet"):
        if OF in pd.read_parquet(path):
            path.unlink()
    for path in (swept.place / "whole" / "cells").glob(f"*/{ANSWERS}-*.parquet"):
        shutil.copy(path, swept.cells.folder / path.relative_to(swept.place / "whole"))
    measures.clear()
    assert_alike(swept.run("cut"), swept.whole, cut=False)
    assert measures == []
    swept.cut()
    assert_alike(swept.run("cut"), swept.whole, cut=True)


def test_a_new_angle_is_answered_beside_cut_ones(swept: Swept, measures: Calls) -> None:
    grid = {**swept.asked["grid"], "angles_deg": [0, 60, 120]}
    want = swept.run("whole", grid=grid)
    measures.clear()
    got = swept.run("cut", grid=grid)
    assert {(score, *angles) for score, angles in measures} == {(score, 60.0) for score in SCORES}
    pd.testing.assert_frame_equal(but_texts(got.table), but_texts(want.table))
    here = got.table.query("prompt_class == 'positive' and angle_deg == 60")["response"]
    assert here.map(len).min() > 60
    swept.cut()
    assert_alike(swept.run("cut", grid=grid), want, cut=True)


def test_a_score_that_needs_the_answers_has_them_written_again(
    asked: Asked, tmp_path: Path, measures: Calls
) -> None:
    swept = Swept({**asked, "prompt_class": "positive"}, tmp_path)
    for path in swept.cells.folder.glob("cells/*/perplexity-*.parquet"):
        path.unlink()
    measures.clear()
    assert_alike(swept.run("cut"), swept.whole, cut=False)
    assert [score for score, _ in measures] == ["answers", "perplexity"]  # and not its divergence
    swept.cut()
    for path in swept.cells.folder.glob("cells/*/kl-*.parquet"):
        path.unlink()
    measures.clear()
    got = swept.run("cut")
    assert [score for score, _ in measures] == ["kl"]
    pd.testing.assert_frame_equal(but_texts(got.table), but_texts(swept.whole.table))


def test_cut_answers_whose_scores_are_damaged_are_written_again(
    swept: Swept, measures: Calls
) -> None:
    kept = [*swept.cells.folder.glob(f"cells/*/{stored_name(TEXTS)}-*.parquet")]
    assert len(kept) == 2  # of the arm, and of the unsteered model
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    measures.clear()
    with pytest.warns(UserWarning, match="its checksum differs"):
        assert_alike(swept.run("cut"), swept.whole, cut=False)
    # Divergence too: at that moment the unsteered answers that it refers to are absent.
    assert {score for score, _ in measures} == {"answers", "kl"}
    swept.cut()
    assert_alike(swept.run("cut"), swept.whole, cut=True)


def test_kept_scores_of_an_earlier_version_are_not_mixed_with_new_ones(
    swept: Swept, measures: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [*swept.cells.folder.glob(f"cells/*/{stored_name(TEXTS)}-*.parquet")]
    for path in kept:
        path.rename(path.with_name(path.name.replace(stored_name(TEXTS), TEXTS, 1)))
    measures.clear()
    with caplog.at_level("INFO", "ss_lens"):
        assert_alike(swept.run("cut"), swept.whole, cut=False)
    assert "answers" in {score for score, _ in measures}
    lines = [line for line in caplog.messages if "counted refusals by phrases" in line]
    assert len(lines) == 1
    assert lines[0].endswith("are written again")


def test_a_cut_answer_keeps_what_was_said_of_it_beside_its_prompt(swept: Swept) -> None:
    got, want = swept.run("cut"), swept.whole
    for name in ("table", "unsteered"):
        assert (getattr(got, name)["refused"] == getattr(want, name)["refused"]).all()
    scores = pd.concat(
        pd.read_parquet(path)
        for path in swept.cells.folder.glob(f"cells/*/{stored_name(TEXTS)}-*.parquet")
    )
    assert {"prompt_index", "refused", "refused_phrases", "refused_published"} <= {*scores}
    assert not {"prompt", "response"} & {*scores}


def test_an_unsteered_answer_without_a_known_prompt_is_written_again(
    swept: Swept, measures: Calls
) -> None:
    """Its group's identity is damaged, so that no other group says which prompts these are."""
    unsteered = CellStore(swept.place / "whole")
    for key in unsteered.keys():  # noqa: SIM118
        if "prompt" not in unsteered.read(key, ANSWERS):
            (unsteered.folder / "cells" / key / "identity.json").write_text("{")
    cut_answers(unsteered, swept.harmful)
    measures.clear()
    again = swept.run("whole")
    assert but_texts(again.unsteered)["refused"].tolist() == [False] * len(again.unsteered)


def only_answers(folder: Path, target: Path) -> None:
    """A sweep folder without anything that was computed from its answers."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("perplexity-*", "kl-*"))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_answers_beside_them_whatever_became_of_these(
    swept: Swept, seed: int
) -> None:
    """Against a folder that holds the same answers, and nothing yet that was computed from them.

    Answers are changed, exchanged between prompts, and written twice in batches of other angles,
    every time as valid cells; then they are cut, which changes nothing.
    """
    draw, cells = random.Random(seed), CellStore(swept.place / "whole")
    for step in range(4):
        for key in cells.keys():  # noqa: SIM118
            rows = pd.concat([pd.DataFrame(), *cells.batches(key, ANSWERS)], ignore_index=True)
            if rows.empty or draw.random() < 0.3:
                continue
            texts = rows["response"].tolist()
            if draw.random() < 0.4:
                draw.shuffle(texts)
            else:
                at = draw.randrange(len(texts))
                texts[at] = f"{step} other words {draw.random():.3f} than before, and some more"
            rows = rows.assign(response=texts)
            angles = [*rows["angle_deg"].unique()]
            if len(angles) > 1 and draw.random() < 0.5:  # a batch of one angle beside the others
                rows = rows.loc[rows["angle_deg"] == draw.choice(angles)]
            cells.commit(key, ANSWERS, rows)
        fresh, cut = f"fresh-{step}", f"cut-{step}"
        only_answers(cells.folder, swept.place / fresh)
        want, got = swept.run(fresh), swept.run("whole")
        pd.testing.assert_frame_equal(got.table, want.table, rtol=1e-5)
        pd.testing.assert_frame_equal(got.unsteered, want.unsteered)
        shutil.copytree(cells.folder, swept.place / cut)
        cut_answers(CellStore(swept.place / cut), swept.harmful)
        assert_alike(swept.run(cut), got, cut=True, least=0)
