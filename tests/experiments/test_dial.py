"""The main job's dial: what is scanned, which angles are chosen, what is kept, what is said."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.run_figures import dial as figures
from ss_lens import ContrastiveDataset, Run, RunConfig, Store, UserError
from ss_lens.cli import jobs
from ss_lens.core.errors import Unavailable
from ss_lens.experiments.dial import scan
from ss_lens.experiments.dial.answers import first_words
from ss_lens.experiments.dial.verdict import verdict
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.stats.intervals import wilson_interval

answers = importlib.import_module("ss_lens.experiments.dial.answers")
CONFIG = RunConfig(angles_deg=(0, 90, 225), dev=2, test=3, max_new_tokens=24, rule="uniform")


@pytest.fixture(scope="module")
def finished(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Run]:
    """With words in place of the random bytes that the tiny model writes."""
    root = tmp_path_factory.mktemp("runs")

    def worded(*arguments: Any, **options: Any) -> pd.DataFrame:
        table = written(*arguments, **options)
        texts = [f"Sure thing number {i} goes on for some more words" for i in range(len(table))]
        texts[0] = "I'm sorry, but I cannot help with this request of yours at all"
        return table.assign(response=texts)

    written = answers.sweep_angles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "sweep_angles", worded)
        store = Store(root / "store")
        model = tiny_models["qwen2"]
        run = ss_lens.run_main_job(model, tiny_data, root / "run", CONFIG, store=store)
    return root / "run", run


def test_every_way_is_scanned_at_its_angles_and_classes(finished: tuple[Path, Run]) -> None:
    table = finished[1].dial
    groups: Any = table.groupby(["way", "prompt_class"])
    at = {names: sorted(rows["angle_deg"].unique()) for names, rows in groups}
    first = {rows["angle_deg"].iloc[0] for _, rows in finished[1].choices.groupby("sense")}
    assert at == {
        (scan.METHOD, "positive"): [0, 90, 225],
        (scan.METHOD, "negative"): [0, 90, 225],
        (scan.ALL_SITES, "positive"): [90, 225],
        (scan.SAS, "positive"): [0, 90, 225],
        (scan.SAS_ALL_SITES, "positive"): [0, 90, 225],
        (scan.RANDOM, "positive"): sorted({90, *first}),
    }
    draws = table.loc[table["way"] == scan.RANDOM, "draw"]
    assert sorted(draws.unique()) == [*range(8)]
    assert (table["n"] == 2).all()
    assert set(at) == set(scan.HEADINGS)


def test_the_dial_is_the_mean_of_one_pass_scores_on_dev(
    finished: tuple[Path, Run],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
) -> None:
    dev = tiny_data.split(dev=2, test=3, seed=0).dev

    for angle in (0, 225):
        with ss_lens.steer(tiny_models["qwen2"], finished[1].calibration, ss_lens.RotateBy(angle)):
            expected = refusal_score(tiny_models["qwen2"], dev.positive).mean()
        table = finished[1].dial
        own = (table["way"] == scan.METHOD) & (table["prompt_class"] == "positive")
        (row,) = table.loc[own & (table["angle_deg"] == angle)].to_dict("records")
        assert row["refusal_score"] == pytest.approx(expected["refusal_score"], abs=1e-4)
        assert row["opening_mass"] == pytest.approx(expected["opening_mass"], abs=1e-5)


def test_each_sense_has_the_best_admissible_angle_of_dev(finished: tuple[Path, Run]) -> None:
    run = finished[1]
    own = (run.dial["way"] == scan.METHOD) & (run.dial["prompt_class"] == "positive")
    scores = run.dial.loc[own].set_index("angle_deg")["refusal_score"].drop(0.0)
    assert scan.chosen_angles(run.choices) == {
        "weakened": scores.idxmin(),
        "strengthened": scores.idxmax(),
    }
    assert sorted(run.responses["angle_deg"].unique()) == [0, 90, 225]


def test_answers_to_positive_prompts_are_cut_unless_they_refuse_and_nowhere_kept_whole(
    finished: tuple[Path, Run],
) -> None:
    folder, run = finished
    positive = run.responses.query("prompt_class == 'positive'")
    refused, others = positive.query("refused"), positive.query("not refused")
    assert len(refused) == 1
    assert refused["response"].iloc[0].endswith("of yours at all")
    assert others["response"].str.fullmatch(r"Sure thing number \d+ goes on …").all()
    assert others["shortened"].all()
    negative = run.responses.query("prompt_class == 'negative'")
    assert negative["response"].str.contains("more words|at all").all()
    assert (positive["n_words"] >= 10).all()  # of the whole answer
    for path in folder.rglob("*.parquet"):
        table = pd.read_parquet(path)
        if "response" in table:
            whole = table["response"].str.endswith("more words")
            assert not whole[table["prompt"].isin(positive["prompt"])].any()
    told = (folder / "responses.csv").read_text("utf-8").splitlines()
    assert not [row for row in told if ",positive," in row and "more words" in row]


def test_all_answers_are_kept_on_request(
    finished: tuple[Path, Run],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
) -> None:
    config = RunConfig(**{**vars(CONFIG), "keep_answers": True, "angles_deg": (0,), "draws": 1})
    run = ss_lens.run_main_job(
        tiny_models["qwen2"], tiny_data, tmp_path / "run", config, store=Store(tmp_path / "s")
    )
    assert not run.responses["shortened"].any()
    assert run.choices.empty
    assert "No turned angle was asked for that could have weakened refusal." in run.verdict


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("a b c d e f", "a b c d e f"),
        ("a b\nc d  e f g", "a b c d e f …"),
    ],
)
def test_six_words_are_kept(text: str, kept: str) -> None:
    assert first_words(text) == kept


# --- the verdict ---------------------------------------------------------------------------------


def scores_of(refused: dict[float, float], n: int = 24) -> pd.DataFrame:
    rows = []
    for angle, rate in refused.items():
        row: dict[str, float] = {"angle_deg": angle, "collapsed": 0.0}
        for label, share in (("positive", rate), ("negative", 0.0)):
            low, high = wilson_interval(round(share * n), n)
            row |= {
                f"refusal_{label}": share,
                f"refusal_{label}_low": low,
                f"refusal_{label}_high": high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def dial_of(own: dict[float, float], drawn: dict[float, list[float]]) -> pd.DataFrame:
    rows = [(scan.METHOD, 0, angle, score) for angle, score in own.items()]
    rows += [
        (scan.RANDOM, draw, angle, score)
        for angle, found in drawn.items()
        for draw, score in enumerate(found)
    ]
    table = pd.DataFrame(rows, columns=["way", "draw", "angle_deg", "refusal_score"])
    return table.assign(prompt_class="positive", opening_mass=0.9, n=16)


def choices_of(**angles: float | None) -> pd.DataFrame:
    rows = [(sense, a or 90.0, 0.0, 0.0, a is not None) for sense, a in angles.items()]
    return pd.DataFrame(rows, columns=[*scan.CHOICE_COLUMNS])


def test_a_turn_that_no_random_plane_makes_is_the_methods() -> None:
    said = verdict(
        scores_of({0.0: 0.875, 135.0: 0.0, 315.0: 1.0}),
        dial_of({0.0: 3.1, 135.0: -5.4, 315.0: 3.4}, {135.0: [3.0, 2.6], 315.0: [3.1, 3.2]}),
        choices_of(weakened=135.0, strengthened=315.0),
    )
    assert said.startswith(
        "Refusal turned down at 135°: refused 0.88 [0.69, 0.96] → 0.00 [0.00, 0.14] of harmful"
    )
    assert "moved by -8.5 nats, in 2 random planes of equal energy at the same sites by" in said
    assert "-0.5 to -0.1. Nothing turned refusal up: the highest score on dev is at 315°" in said
    assert "random plane does as well" not in said
    assert "\n" not in said


def test_a_turn_that_a_random_plane_makes_too_is_not_credited() -> None:
    said = verdict(
        scores_of({0.0: 0.875, 135.0: 0.0}),
        dial_of({0.0: 3.1, 135.0: -1.4}, {135.0: [-2.0, 2.6]}),
        choices_of(weakened=135.0, strengthened=None),
    )
    assert "a random plane does as well, so the turn is not the method's plane's" in said
    assert "No angle strengthened refusal with coherent text: at each of 1 too many dev" in said


def test_where_nothing_turned_that_is_said() -> None:
    said = verdict(
        scores_of({0.0: 0.875, 180.0: 0.833, 45.0: 0.875}),
        dial_of({0.0: 3.1, 180.0: -1.4, 45.0: 3.3}, {180.0: [-2.0, 2.6], 45.0: [3.4]}),
        choices_of(weakened=180.0, strengthened=45.0),
    )
    assert said.startswith("Nothing turned refusal down: the lowest score on dev is at 180°")
    assert said.count("a random plane moves it as far") == 2


def test_a_turn_to_the_other_side_is_said() -> None:
    said = verdict(
        scores_of({0.0: 0.0, 90.0: 0.9}),
        dial_of({0.0: 3.1, 90.0: 2.9}, {}),
        choices_of(weakened=90.0),
    )
    assert said.startswith("Refusal turned against what its score on dev said at 90°")
    assert "no random plane was measured there" in said


# --- the fallback, and the figure ----------------------------------------------------------------


def test_an_unavailable_model_is_replaced_on_request_in_one_line(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    prompts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(name: str, **_: object) -> TransformerBridge:
        if name == "large":
            raise Unavailable("large needs 11 GB of memory; 4 GB are free.")
        if name == "broken":
            raise UserError("damaged.")
        return tiny_models[name]

    monkeypatch.setattr(ss_lens, "load_model", load)
    options = {
        "dataset": str(prompts_file), "out_dir": tmp_path / "run", "dev": 2, "test": 2,
        "rule": "uniform", "angles": "0,90", "draws": 1, "max_new_tokens": 2, "as_json": True,
    }  # fmt: skip
    jobs.run(model="large", fallback="qwen2", **options)
    told = capsys.readouterr()
    line = "large needs 11 GB of memory; 4 GB are free. Running qwen2 instead."
    assert line in told.err.splitlines()
    found = json.loads(told.out)
    assert {"dial", "choices", "scores", "verdict"} <= found.keys()
    with pytest.raises(Unavailable):
        jobs.run(model="large", **options)
    with pytest.raises(UserError, match="damaged"):
        jobs.run(model="broken", fallback="qwen2", **options)


def test_the_figure_draws_every_way_and_closes_the_circle(finished: tuple[Path, Run]) -> None:
    table = figures.measure(finished[1].dial)
    assert set(table.loc[table["way"] == scan.RANDOM, "draws"]) == {8}
    traces: Any = figures.figure(table).data
    names = [trace.name for trace in traces]
    assert names == [name for name in scan.HEADINGS.values() for _ in range(2)]
    own = next(trace for trace in traces if trace.name == "rotate_by, steered sites")
    assert own.x[0] == 0
    assert own.x[-1] == 360
    assert own.y[0] == own.y[-1]
