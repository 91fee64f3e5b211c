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
from analyses import style
from analyses.run_figures import dial as figures
from ss_lens import ContrastiveDataset, Run, RunConfig, Store, UserError
from ss_lens.cli import jobs
from ss_lens.core.errors import Unavailable
from ss_lens.experiments.dial import scan, ways
from ss_lens.experiments.dial.answers import first_words
from ss_lens.experiments.dial.verdict import verdict
from ss_lens.scoring.refusal_score import refusal_score
from ss_lens.stats.intervals import wilson_interval

worker = importlib.import_module("ss_lens.experiments.worker")
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

    written = worker.sweep_angles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "sweep_angles", worded)
        store = Store(root / "store")
        model = tiny_models["qwen2"]
        run = ss_lens.run_main_job(model, tiny_data, root / "run", CONFIG, store=store)
    return root / "run", run


def test_every_way_is_scanned_at_its_angles_and_classes(finished: tuple[Path, Run]) -> None:
    table = finished[1].dial
    groups: Any = table.groupby(["way", "prompt_class"])
    at = {names: sorted(rows["angle_deg"].unique()) for names, rows in groups}
    few = sorted({90, *scan.chosen_angles(finished[1].choices).values()})
    assert few == [90, 225]
    assert at == {
        (scan.METHOD, "positive"): [0, 90, 225],
        (scan.METHOD, "negative"): [0, 90, 225],
        (scan.ALL_SITES, "positive"): [90, 225],
        (scan.SAS, "positive"): [0, 90, 225],
        (scan.SAS_ALL_SITES, "positive"): [0, 90, 225],
        (scan.SAME, "positive"): [0, *few],
        (scan.UNIFORM, "positive"): few,
        (scan.MATCHED, "positive"): few,
    }
    for way in scan.RANDOM:
        assert sorted(table.loc[table["way"] == way, "draw"].unique()) == [*range(8)]
    assert (table["n"] == 2).all()
    assert set(at) == set(ways.HEADINGS)


def test_random_planes_and_the_method_beside_them_are_measured_on_the_first_prompts(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "RANDOM_PROMPTS", 1)
    model = tiny_models["qwen2"]
    config = RunConfig(**{**vars(CONFIG), "angles_deg": (0, 180), "draws": 2})
    run = ss_lens.run_main_job(model, tiny_data, tmp_path / "run", config, store=Store(tmp_path))
    rows = run.dial.set_index(["way", "draw", "angle_deg"]).sort_index()
    first = tiny_data.split(dev=2, test=3, seed=0).dev.positive[:1]
    planes: Any = {scan.SAME: run.calibration}
    acts = Store(tmp_path).load(run.activations["train"])
    uniform = ss_lens.RandomPlane(seed=0)
    planes[scan.UNIFORM] = ss_lens.calibrate(acts, plane=uniform, rule="uniform")
    for way, calibration in planes.items():
        with ss_lens.steer(model, calibration, ss_lens.RotateBy(180)):
            (expected,) = refusal_score(model, first).to_dict("records")
        row = rows.loc[(way, 0, 180.0)]
        assert row["n"] == 1
        assert row["refusal_score"] == pytest.approx(expected["refusal_score"], abs=1e-4)
    assert set(rows.loc[scan.METHOD, "n"]) == {2}


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


def test_answers_to_positive_prompts_are_cut_and_nowhere_kept_whole(
    finished: tuple[Path, Run],
) -> None:
    folder, run = finished
    positive = run.responses.query("prompt_class == 'positive'")
    refused, others = positive.query("refused"), positive.query("not refused")
    assert len(refused) == 1
    assert refused["response"].iloc[0] == "I'm sorry, but I cannot help …"  # and may have gone on
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
        ("字" * 60, "字" * 40 + " …"),
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


Point = tuple[float, float]
"""A score and an opening mass."""


def dial_of(
    own: dict[float, Point],
    uniform: dict[float, list[Point]],
    matched: dict[float, list[Point]],
) -> pd.DataFrame:
    rows = [(scan.METHOD, 0, angle, *point, 16) for angle, point in own.items()]
    if uniform:
        rows += [(scan.SAME, 0, angle, *point, 8) for angle, point in own.items()]
    rows += [
        (way, draw, angle, *point, 8)
        for way, planes in ((scan.UNIFORM, uniform), (scan.MATCHED, matched))
        for angle, found in planes.items()
        for draw, point in enumerate(found)
    ]
    columns = ["way", "draw", "angle_deg", "refusal_score", "opening_mass", "n"]
    return pd.DataFrame(rows, columns=columns).assign(prompt_class="positive")


def choices_of(**angles: float | None) -> pd.DataFrame:
    rows = [(sense, a or 90.0, 0.0, 0.0, a is not None) for sense, a in angles.items()]
    return pd.DataFrame(rows, columns=[*scan.CHOICE_COLUMNS])


FLAT = [(3.0, 0.9), (2.6, 0.88)]
"""Uniform random planes in which nothing happens."""


def weakened(own: Point, uniform: list[Point], matched: list[Point], after: float = 0.0) -> str:
    """What is said of a turn at 135° from a score of 3.1 with an opening mass of 0.9."""
    said = verdict(
        scores_of({0.0: 0.875, 135.0: after}),
        dial_of({0.0: (3.1, 0.9), 135.0: own}, {135.0: uniform}, {135.0: matched}),
        choices_of(weakened=135.0),
    )
    return said.removesuffix(" No turned angle was asked for that could have strengthened refusal.")


def test_a_turn_that_no_random_plane_makes_is_the_planes_own() -> None:
    said = verdict(
        scores_of({0.0: 0.875, 135.0: 0.0, 315.0: 1.0}),
        dial_of(
            {0.0: (3.1, 0.9), 135.0: (-5.4, 0.8), 315.0: (3.4, 0.9)},
            {135.0: FLAT, 315.0: FLAT},
            {135.0: [(1.0, 0.3), (0.4, 0.6)], 315.0: FLAT},
        ),
        choices_of(weakened=135.0, strengthened=315.0),
    )
    assert said.startswith(
        "Refusal turned down at 135°: refused 0.88 [0.69, 0.96] → 0.00 [0.00, 0.14] of harmful"
    )
    assert (
        "; the score on 8 dev prompts moved by -8.5 nats (opening mass 0.90 → 0.80), in 2 uniform "
        "random planes at the same sites by -0.5 to -0.1 (opening mass 0.88 to 0.90), in 2 of "
        "equal energy by -2.7 to -2.1 (opening mass 0.30 to 0.60): no random plane moves it as "
        "far, so the turn is the plane's own. Nothing turned refusal up: the highest score on dev "
        "is at 315°"
    ) in said
    assert said.endswith(": no random plane moves it as far.")
    assert said.count("the plane's own") == 1
    assert "\n" not in said


def test_random_planes_that_break_the_text_do_not_do_as_well() -> None:
    broken = weakened((-2.0, 0.7), FLAT, [(-4.0, 0.44), (-2.5, 0.1), (2.0, 0.9)])
    assert broken.endswith(
        ": only planes of equal energy move it as far (2), and there the text breaks, so the turn "
        "is the plane's own."
    )


def test_a_turn_that_a_random_plane_of_equal_energy_makes_with_its_text_is_not_credited() -> None:
    said = weakened((-2.0, 0.7), FLAT, [(-4.0, 0.1), (-2.0, 0.46), (2.0, 0.9)])
    assert said.endswith(
        ": a random plane of equal energy does as well, so the turn is not the plane's own (its "
        "opening mass is 0.46)."
    )


def test_no_random_plane_is_discounted_where_the_method_breaks_the_text_too() -> None:
    said = weakened((-2.0, 0.2), FLAT, [(-4.0, 0.1), (2.0, 0.9)])
    assert "a random plane of equal energy does as well, so the turn is not the plane's own" in said


def test_a_turn_that_a_uniform_random_plane_makes_too_is_not_credited() -> None:
    said = verdict(
        scores_of({0.0: 0.875, 135.0: 0.0}),
        dial_of(
            {0.0: (3.1, 0.9), 135.0: (-1.4, 0.8)},
            {135.0: [(-2.0, 0.1), (2.6, 0.9)]},
            {135.0: FLAT},
        ),
        choices_of(weakened=135.0, strengthened=None),
    )
    assert "a uniform random plane does as well, so the turn is not the plane's own" in said
    assert "No angle strengthened refusal with coherent text: at the only one that was " in said
    assert "that was tried too many dev answers collapsed." in said


def test_one_draw_and_one_prompt_are_counted_as_one() -> None:
    scores, choices = scores_of({0.0: 0.875, 135.0: 0.0}), choices_of(weakened=135.0)
    dial = dial_of({0.0: (3.1, 0.9), 135.0: (-5.4, 0.8)}, {135.0: FLAT[:1]}, {135.0: [(1.0, 0.3)]})
    said = verdict(scores, dial.assign(n=1), choices)
    assert (
        "; the score on 1 dev prompt moved by -8.5 nats (opening mass 0.90 → 0.80), in 1 uniform "
        "random plane at the same sites by -0.1 (opening mass 0.90), in 1 of equal energy by -2.1 "
        "(opening mass 0.30): no random plane moves it as far"
    ) in said
    asked = pd.DataFrame(
        {
            "sense": "weakened",
            "system": "Answer.",
            "prompt_class": ["positive", "negative"],
            "refusal_score": [3.0, -3.0],
            "opening_mass": 0.9,
            "n": 1,
            "chosen": True,
        }
    )
    beside = verdict(scores, dial.assign(n=1), choices, asked)
    assert "in a system prompt, unsteered, the score on 1 dev prompt moves by" in beside


def test_where_nothing_turned_that_is_said() -> None:
    said = verdict(
        scores_of({0.0: 0.875, 180.0: 0.833, 45.0: 0.875}),
        dial_of(
            {0.0: (3.1, 0.9), 180.0: (-1.4, 0.9), 45.0: (3.3, 0.9)},
            {180.0: [(-2.0, 0.9), (2.6, 0.9)], 45.0: FLAT},
            {180.0: FLAT, 45.0: [(3.4, 0.9)]},
        ),
        choices_of(weakened=180.0, strengthened=45.0),
    )
    assert said.startswith("Nothing turned refusal down: the lowest score on dev is at 180°")
    assert said.count("a uniform random plane moves it as far") == 1
    assert said.count("a random plane of equal energy moves it as far") == 1
    broken = weakened((-2.0, 0.7), FLAT, [(-4.0, 0.1)], after=0.833)
    assert broken.startswith("Nothing turned refusal down")
    assert broken.endswith(
        "only one plane of equal energy moves it as far, and there the text breaks."
    )
    assert "the plane's own" not in said + broken


def test_a_turn_to_the_other_side_is_said() -> None:
    said = verdict(
        scores_of({0.0: 0.0, 90.0: 0.9}),
        dial_of({0.0: (3.1, 0.9), 90.0: (2.9, 0.9)}, {}, {}),
        choices_of(weakened=90.0),
    )
    assert said.startswith("Refusal turned against what its score on dev said at 90°")
    assert "the score on 16 dev prompts moved by -0.2 nats" in said
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
    assert set(table.loc[table["way"].isin(scan.RANDOM), "draws"]) == {8}
    traces: Any = [t for t in figures.figure(table).data if t.meta != style.EXPLAINS]
    names = [trace.name for trace in traces]
    assert names == [name for name in ways.HEADINGS.values() for _ in range(2)]
    own = next(trace for trace in traces if trace.name == "rotate_by, steered sites")
    assert own.x[0] == 0
    assert own.x[-1] == 360
    assert own.y[0] == own.y[-1]
    marks = {t.name: (t.marker.color, t.marker.symbol) for t in traces if t.mode == "markers"}
    assert len({*marks.values()}) == len(marks) == 3
