"""Sweeps, the choice of an angle and the main job follow a behaviour as they follow refusal."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.report.sources.ablations import of_ablations
from analyses.report.sources.run import of_run
from ss_lens import AblationConfig, ContrastiveDataset, RunConfig, Store, UserError
from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.questions import KEYS
from ss_lens.behaviours.readers import Function
from ss_lens.cli.run_tables import print_run
from ss_lens.cli.tables import print_ablations, print_sweep
from ss_lens.core.sealed import write_sealed_json
from ss_lens.experiments.ablations.result import load_ablations
from ss_lens.experiments.ablations.run import run_ablations
from ss_lens.experiments.ablations.variants import FULL, criterion
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.dial.folder import load_run
from ss_lens.experiments.main_run import run_main_job
from ss_lens.experiments.paper.plan import PaperConfig
from ss_lens.experiments.paper.tables import facts
from ss_lens.judges import Opinion, RubricJudge, verdict_table
from ss_lens.judges.agreement.known import Known
from ss_lens.scoring.behaviours.openings import Openings, first_token_scores
from tests.experiments.sweeping import Asked

scan = importlib.import_module("ss_lens.experiments.dial.scan")
OPENINGS = Openings(("A", "B", "a"), ("x", "y", "Z"))
CONFIG = RunConfig(angles_deg=(0, 120), dev=2, test=3, max_new_tokens=4, rule="uniform", draws=1)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model writes random bytes, which count as collapsed text otherwise."""
    make = scan.criteria

    def lenient(measures: object) -> dict[str, object]:
        found = make(measures)
        return {sense: replace(one, max_non_latin_share=None) for sense, one in found.items()}

    monkeypatch.setattr(scan, "criteria", lenient)


@pytest.fixture
def tiny(tiny_models: dict[str, TransformerBridge]) -> TransformerBridge:
    return tiny_models["qwen2"]


def yaml_of(folder: Path, data: ContrastiveDataset, scored: str) -> Path:
    lists = {"positive": [*data.positive], "negative": [*data.negative]}
    path = folder / "letters.yaml"
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in lists.items()) + scored)
    return path


@pytest.fixture
def opened(tmp_path: Path, tiny_data: ContrastiveDataset) -> Path:
    scored = "openings: {positive: [A, B, a], negative: [x, 'y', Z]}\npattern: '[a-m]'\n"
    return yaml_of(tmp_path, tiny_data, scored)


def test_a_sweep_measures_the_behaviour_in_place_of_refusal(
    asked: Asked, opened: Path, tiny: TransformerBridge, tmp_path: Path, store: Store
) -> None:
    grid = {name: value for name, value in asked["grid"].items() if name != "dataset"}
    config = SweepConfig(**{**asked, "grid": grid, "behaviour": str(opened)})
    assert config.grid[0].dataset == ("letters",)
    assert "refusal_score" not in config.scores
    table = ss_lens.run_sweep(config, tmp_path / "sweep", store=store).table
    at_0 = table.query("angle_deg == 0 and prompt_class == 'positive'")
    expected = first_token_scores(tiny, at_0["prompt"].tolist(), OPENINGS)
    assert at_0["behaviour_score"].to_numpy() == pytest.approx(expected["score"], abs=1e-4)
    assert at_0["behaviour_mass"].to_numpy() == pytest.approx(expected["mass"], abs=1e-5)
    shows = [float(any("a" <= letter <= "m" for letter in text)) for text in table["response"]]
    assert table["shown"].tolist() == shows
    assert ss_lens.load_sweep(tmp_path / "sweep").table["shown"].tolist() == shows


def test_the_score_of_a_behaviour_has_the_columns_of_its_sweep(
    asked: Asked, opened: Path, tiny: TransformerBridge, tmp_path: Path, store: Store
) -> None:
    behaviour = ss_lens.load_behaviour(opened)
    grid = {name: value for name, value in asked["grid"].items() if name != "dataset"}
    scores = {"scores": ["behaviour_score"], "behaviour": str(opened)}
    swept = ss_lens.run_sweep(
        SweepConfig(**{**asked, "grid": grid, **scores}), tmp_path / "sweep", store=store
    ).unsteered
    table = behaviour.score(tiny, swept["prompt"].tolist())
    assert [*table] == ["behaviour_score", "behaviour_mass"]
    for name in table:
        assert table[name].to_numpy() == pytest.approx(swept[name].to_numpy(), abs=1e-4)
    refusal = ss_lens.load_behaviour("refusal")
    assert [*refusal.score(tiny, swept["prompt"].tolist()[:1])] == ["refusal_score", "opening_mass"]


class Oracle:
    """Says ``harmful`` of answers that hold an e."""

    def __repr__(self) -> str:
        return "Oracle()"

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
        return verdict_table([Opinion("harmful" if "e" in text else "safe") for text in answers])


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the answers of every behaviour that names a judge."""
    monkeypatch.setattr("ss_lens.behaviours.readers.read_judge", lambda text: Oracle())


MEASURED = Known("HarmBench()", 0.71, 0.62, 0.79, 675, "XSTest")
SAID = "HarmBench(), κ with people 0.71 [0.62, 0.79] on 675 answers (XSTest)"


@pytest.fixture
def measured(oracle: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's agreement with people is known."""
    monkeypatch.setattr("ss_lens.judges.agreement.known.known", lambda judge: MEASURED)


def without(path: Path, name: str) -> None:
    """As an earlier version wrote a sealed file."""
    values = json.loads(path.read_text())
    write_sealed_json(path, {key: v for key, v in values.items() if key not in (name, "sha256")})


def test_a_sweep_that_a_judge_reads_carries_its_name_and_its_agreement(
    asked: Asked,
    tiny_data: ContrastiveDataset,
    oracle: None,
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = yaml_of(tmp_path, tiny_data, "judge: HarmBench()\n")
    grid = {name: value for name, value in asked["grid"].items() if name != "dataset"}
    config = SweepConfig(**{**asked, "grid": grid, "behaviour": str(path)})
    result = ss_lens.run_sweep(config, tmp_path / "sweep", store=store)
    assert result.shown_by == "HarmBench(), κ not measured"
    assert result.table["shown"].tolist() == ["e" in text for text in result.table["response"]]
    assert ss_lens.load_sweep(tmp_path / "sweep").shown_by == result.shown_by
    assert "shown by" in repr(result)
    monkeypatch.setattr("ss_lens.judges.agreement.known.known", lambda judge: MEASURED)
    again = ss_lens.run_sweep(config, tmp_path / "sweep", store=store)
    assert again.shown_by == ss_lens.load_sweep(tmp_path / "sweep").shown_by == SAID
    print_sweep(again, tmp_path / "sweep", as_json=True)
    assert json.loads(capsys.readouterr().out)["shown_by"] == SAID
    print_sweep(again, tmp_path / "sweep", as_json=False)
    assert "shown: by HarmBench(), κ with people 0.71" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_a_judge_reads_carries_its_name_and_its_agreement(
    letters: None,
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    measured: None,
    tmp_path: Path,
    store: Store,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour = ss_lens.load_behaviour(yaml_of(tmp_path, tiny_data, "judge: HarmBench()\n"))
    folder = tmp_path / "run"
    run = run_main_job(tiny, behaviour, folder, CONFIG, store=store)
    again = load_run(folder)
    assert run.shown_by == again.shown_by == SAID
    assert run.refused_by == ""
    assert "shown by" in repr(run)
    print_run(again, folder, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["shown_by"] == SAID
    print_run(again, folder, None, as_json=False)
    assert "shown: by HarmBench(), κ with people 0.71" in " ".join(capsys.readouterr().out.split())
    configuration = of_run(folder, store).configuration
    assert configuration["shown by"] == SAID
    assert configuration["behaviour"] == "letters; “shown” is by a judge"
    without(folder / "tables.json", "shown_by")
    assert load_run(folder).shown_by == ""


def test_an_ablation_that_a_judge_reads_carries_its_name_and_its_agreement(
    asked: Asked,
    tiny_data: ContrastiveDataset,
    measured: None,
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ablation, make = importlib.import_module("ss_lens.experiments.ablations.variants"), criterion
    lenient = {"max_perplexity": None, "max_repetition": None, "max_collapsed": 1.0}
    monkeypatch.setattr(ablation, "criterion", lambda names: replace(make(names), **lenient))
    monkeypatch.setattr(ablation, "VARIANTS", {FULL: {}, "all sites": {"selection": "uniform"}})
    path = yaml_of(tmp_path, tiny_data, "judge: HarmBench()\n")
    sizes = {"angles_deg": (0, 120), "dev": 2, "test": 2, "draws": 1, "max_new_tokens": 4}
    config = AblationConfig(asked["grid"]["model"], behaviour=str(path), **sizes)
    folder = tmp_path / "ablation"
    result = run_ablations(config, folder, store=store)
    assert result.shown_by == load_ablations(folder).shown_by == SAID
    assert "shown by" in repr(result)
    print_ablations(result, folder, as_json=True)
    assert json.loads(capsys.readouterr().out)["shown_by"] == SAID
    print_ablations(result, folder, as_json=False)
    assert "shown: by HarmBench(), κ with people 0.71" in " ".join(capsys.readouterr().out.split())
    assert of_ablations(folder).configuration["shown by"] == SAID
    without(folder / "ablations" / "ablations.json", "shown_by")
    assert load_ablations(folder).shown_by == ""


def test_the_facts_of_a_paper_run_name_who_reads_what_its_tables_have(opened: Path) -> None:
    def said(config: PaperConfig, shown_by: str) -> dict[str, str]:
        measured = SimpleNamespace(facts={}, tested=SimpleNamespace(shown_by=shown_by))
        table = facts(config, cast("Any", measured))
        return dict(zip(table["fact"], table["value"], strict=True))

    followed = said(PaperConfig("model", behaviour=str(opened)), SAID)
    assert followed["shown_by"] == SAID
    assert "refused_by" not in followed  # nor is there a column of it
    refusal = said(PaperConfig("model"), "")
    assert "classify_refusal, κ with people" in refusal["refused_by"]
    assert "shown_by" not in refusal


def test_a_sweep_is_read_by_a_model_that_runs_beside_the_steered_one(
    asked: Asked,
    tiny_data: ContrastiveDataset,
    tiny_folders: dict[str, Path],
    tmp_path: Path,
    store: Store,
) -> None:
    judge = RubricJudge(
        str(tiny_folders["llama"]), "w31 {prompt} w32 {answer} w33", positive="w20", negative="w30"
    )
    path = yaml_of(tmp_path, tiny_data, f"judge: {json.dumps(repr(judge))}\n")
    grid = {name: value for name, value in asked["grid"].items() if name != "dataset"}
    config = SweepConfig(**{**asked, "grid": grid, "behaviour": str(path)})
    result = ss_lens.run_sweep(config, tmp_path / "sweep", store=store)
    rows = result.table
    said = judge(rows["prompt"].tolist(), rows["response"].tolist())["verdict"]
    assert rows["shown"].tolist() == [float(verdict == "w20") for verdict in said]
    assert result.shown_by.endswith(", κ not measured")


def test_a_sweep_without_a_judge_names_none_and_one_of_earlier_versions_neither(
    asked: Asked, opened: Path, tmp_path: Path, store: Store
) -> None:
    grid = {name: value for name, value in asked["grid"].items() if name != "dataset"}
    config = SweepConfig(**{**asked, "grid": grid, "behaviour": str(opened)})
    assert ss_lens.run_sweep(config, tmp_path / "sweep", store=store).shown_by == ""
    path = tmp_path / "sweep" / "result" / "sweep.json"
    values = json.loads(path.read_text())
    assert "shown_by" not in values
    for name in ("sha256", "tables", "refused_by"):
        del values[name]
    path.write_text(json.dumps(values))
    assert ss_lens.load_sweep(tmp_path / "sweep").shown_by == ""


def test_the_angle_is_chosen_by_the_behaviours_score(
    asked: Asked, opened: Path, tmp_path: Path, store: Store
) -> None:
    grid = {name: value for name, value in asked["grid"].items() if name != "dataset"}
    choose = {
        **{"score": "behaviour_score", "goal": "maximise", "prompt_class": "negative"},
        **{"max_perplexity": None, "max_repetition": None, "max_collapsed": 1},
    }
    config = SweepConfig(
        **{**asked, "grid": grid, "behaviour": str(opened), "choose": choose, "parts": ["dev"]}
    )
    result = ss_lens.run_sweep(config, tmp_path / "sweep", store=store)
    dev = result.table.query("part == 'dev' and prompt_class == 'negative'")
    means = dev.groupby("angle_deg")["behaviour_score"].mean()
    assert result.choices[0].choice.angle_deg == means.idxmax()


def test_cells_of_refusal_are_what_they_were_without_behaviours(
    asked: Asked, tmp_path: Path, store: Store
) -> None:
    asked = {**asked, "scores": ["refusal_score"]}
    ss_lens.run_sweep(SweepConfig(**asked), tmp_path / "sweep", store=store)
    before = {path.name for path in (tmp_path / "sweep" / "cells").iterdir()}
    named = SweepConfig(**{**asked, "behaviour": "refusal"})
    ss_lens.run_sweep(named, tmp_path / "sweep", store=store)
    assert {path.name for path in (tmp_path / "sweep" / "cells").iterdir()} == before


def test_a_score_without_a_behaviour_is_refused_before_the_work(
    asked: Asked, tmp_path: Path, store: Store
) -> None:
    config = SweepConfig(**{**asked, "scores": ["behaviour_score"]})
    with pytest.raises(UserError, match="behaviour_score, which no behaviour is named"):
        ss_lens.run_sweep(config, tmp_path / "sweep", store=store)
    assert not (tmp_path / "sweep").exists()


def test_the_main_job_turns_a_behaviour_and_reads_it_back(
    letters: None, tiny: TransformerBridge, opened: Path, tmp_path: Path, store: Store
) -> None:
    behaviour, folder = ss_lens.load_behaviour(opened), tmp_path / "run"
    run = run_main_job(tiny, behaviour, folder, CONFIG, store=store)
    assert {"behaviour_score", "opening_mass"} <= {*run.dial}
    assert "refusal_score" not in run.dial
    assert {"shown_positive", "behaviour_score_negative"} <= {*run.scores}
    senses = run.choices.query("chosen")["sense"].tolist()
    assert "etters turned" in run.verdict or "turned letters" in run.verdict or not senses
    assert "efusal" not in run.verdict
    assert "harm" not in run.verdict
    controls = run.dial.query("way == 'rotate_to'")
    assert {*controls["prompt_class"]} == {"positive", "negative"}
    again = load_run(folder)
    assert again.measures == behaviour.measures
    assert again.verdict == run.verdict
    with pytest.raises(UserError, match="differs in behaviour"):
        run_main_job(tiny, behaviour.dataset, folder, CONFIG, store=store)


def test_the_main_job_scores_answers_where_a_behaviour_has_no_openings(
    letters: None,
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    store: Store,
) -> None:
    long = Function(lambda answer: len(answer.encode()) - 3, name="length")
    run = run_main_job(
        tiny, Behaviour("length", tiny_data, shown=long), tmp_path / "run", CONFIG, store=store
    )
    assert run.dial["opening_mass"].isna().all()
    assert run.dial["text_score"].notna().all()
    lengths = load_run(tmp_path / "run").scores["text_score_positive"]
    assert lengths.tolist() == pytest.approx(run.scores["text_score_positive"].tolist())
    assert "nats" not in run.verdict
    assert "mass" not in run.verdict


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"openings": Openings(("Arr",), ("Ahoy",)), "shown": Function(len, name="length")},
            "does not tell the positive openings from the negative ones by their first token",
        ),
        (
            {"shown": Function(lambda answer: answer.split()[0] == "No", name="no")},
            "the function 'no' raised IndexError for answer 0",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_captured(
    fields: dict[str, object],
    message: str,
    asked: Asked,
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("activations were captured first")

    for name in ("main_run", "inputs"):
        monkeypatch.setattr(f"ss_lens.experiments.{name}.capture", never)
    behaviour = Behaviour("odd", tiny_data, **fields)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        run_main_job(tiny, behaviour, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()
    config = SweepConfig(**{**asked, "scores": ["answers", *behaviour.scored_by]})
    with pytest.raises(UserError, match=message):
        ss_lens.run_sweep(config, tmp_path / "sweep", behaviour=behaviour)


def test_a_score_that_is_nan_for_all_ends_the_main_job_at_its_first_answers(
    letters: None,
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    store: Store,
) -> None:
    nothing = Function(lambda answer: float("nan"), name="nothing")
    for openings in (None, OPENINGS):
        behaviour = Behaviour("nothing", tiny_data, openings=openings, shown=nothing)
        with pytest.raises(UserError, match=r"is NaN for all \d+ answers to positive dev prompts"):
            run_main_job(tiny, behaviour, tmp_path / f"run {openings}", CONFIG, store=store)


def test_a_few_test_answers_that_all_lack_a_value_do_not_end_the_main_job(
    letters: None,
    tiny: TransformerBridge,
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Test prompts are answered some at a time; none of one prompt's answers need be readable."""
    main_run = importlib.import_module("ss_lens.experiments.main_run")
    first = tiny_data.split(dev=CONFIG.dev, test=CONFIG.test, seed=CONFIG.seed).test.positive[0]
    score, lacking = main_run.scored_answers, {"now": False}

    def scored(setting: Any, *given: Any, **named: Any) -> pd.DataFrame:
        lacking["now"] = setting.prompts == (first,)
        return score(setting, *given, **named)

    monkeypatch.setattr(main_run, "PROMPTS_PER_CHUNK", 1)
    monkeypatch.setattr(main_run, "scored_answers", scored)
    shown = Function(lambda answer: float("nan") if lacking["now"] else 1.0, name="some")
    behaviour = Behaviour("some", tiny_data, openings=OPENINGS, shown=shown)
    run = run_main_job(tiny, behaviour, tmp_path / "run", CONFIG, store=store)
    assert run.responses.query("prompt == @first")["shown"].isna().all()
    assert run.responses.query("prompt != @first")["shown"].eq(1).all()
    assert (run.scores["n_positive"] == CONFIG.test - 1).all()


def test_the_main_job_asks_questions_without_their_answers(
    letters: None, tiny: TransformerBridge, tmp_path: Path, store: Store
) -> None:
    rows = [
        (f"Is {n} a number?", *((" Yes", " No") if n % 2 else (" No", " Yes"))) for n in range(12)
    ]
    lines = [json.dumps(dict(zip(KEYS, row, strict=True))) for row in rows]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    (tmp_path / "numbers.yaml").write_text("questions: set.jsonl\n")
    behaviour = ss_lens.load_behaviour(tmp_path / "numbers.yaml")
    run = run_main_job(tiny, behaviour, tmp_path / "run", CONFIG, store=store)
    assert {*run.responses["prompt"]} <= {row[0] for row in rows}
    still = run.responses.query("angle_deg == 0 and prompt_class == 'positive'")
    expected = behaviour.score(tiny, still["prompt"].tolist())["behaviour_score"]
    assert still["behaviour_score"].to_numpy() == pytest.approx(expected, abs=1e-4)
    assert still["shown"].tolist() == (still["behaviour_score"] > 0).tolist()


def test_other_prompts_than_a_behaviours_questions_are_refused_before_capture(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [dict(zip(KEYS, (f"Is {n} odd?", "Yes", "No"), strict=True)) for n in range(12)]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "numbers.yaml").write_text("questions: set.jsonl\n")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("activations were captured first")

    monkeypatch.setattr("ss_lens.experiments.inputs.capture", never)
    config = SweepConfig(**{**asked, "behaviour": str(tmp_path / "numbers.yaml")})
    with pytest.raises(UserError, match="is none of the 12 questions"):
        ss_lens.run_sweep(config, tmp_path / "sweep")


def test_a_behaviour_made_in_python_reaches_no_cluster(
    asked: Asked, tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    config = SweepConfig(**{**asked, "scores": ["behaviour_score"], "cluster": "local"})
    made = Behaviour("letters", tiny_data, openings=OPENINGS)
    with pytest.raises(UserError, match="was made in Python"):
        ss_lens.run_sweep(config, tmp_path / "sweep", behaviour=made)
