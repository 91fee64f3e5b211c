"""The report of an ablation says what differs; it is shown beside a run of its calibration."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.ablations import main as draw_ablations
from analyses.report import gather, page
from analyses.report.contents import Contents
from analyses.report.sources.ablations import beside, curves, said
from analyses.report.sources.run_facts import (
    ablate_command,
    ablations_of,
    behaviour_given,
    run_command,
)
from ss_lens import RunConfig, UserError
from ss_lens.experiments.ablations.config import AblationConfig
from ss_lens.experiments.ablations.result import AblationResult, save
from ss_lens.experiments.ablations.variants import FULL
from ss_lens.models.chat import ChatFormat
from tests.analyses.made_reports import made_sweep

VARIANTS = (FULL, "all sites", "random plane")
ANGLES = (0.0, 90.0, 180.0)
CONFIG = AblationConfig("folder/made-up", angles_deg=ANGLES, dev=2, test=2, draws=4)


def made_ablation(
    folder: Path, config: AblationConfig = CONFIG, names: Mapping[str, str] | None = None
) -> AblationResult:
    """All sites turn twice as far as the full method and collapse; random planes do nothing.

    ``names`` are what another behaviour calls the score and the opening mass.
    """
    rows, scan = [], []
    for factor, variant in zip((1.0, 2.0, 0.0), VARIANTS, strict=True):
        for label in ("positive", "negative"):
            for metric in ("refused", "refusal_score", "collapsed"):
                mean = factor * 0.2 if metric == "collapsed" else -factor
                other = variant != FULL
                rows.append(
                    {
                        "variant": variant, "angles_deg": "180, 90" if factor == 0 else "180",
                        "n_sites": "5, 5" if factor == 0 else "5" if factor == 1 else "8",
                        "prompt_class": label, "metric": metric, "n": 2,
                        "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
                        "draws": 2 if factor == 0 else 1, "draw_low": mean, "draw_high": mean,
                        "n_pairs": 2, "difference": mean + 1 if other else np.nan,
                        "difference_low": 0.0, "difference_high": 1.0,
                        "p_value": 0.5, "p_holm": (0.01 if factor else 0.5) if other else np.nan,
                    }
                )  # fmt: skip
            scan += [
                {
                    "variant": variant, "draw": draw, "prompt_class": label, "angle_deg": angle,
                    "prompt_index": index, "opening_mass": 0.8,
                    "refusal_score": 3.0 - factor * angle / 30 + draw,
                }
                for draw in range(2 if factor == 0 else 1)
                for angle in ANGLES
                for index in range(2)
            ]  # fmt: skip
    choices = pd.DataFrame(
        [(variant, 0, 180.0, -3.0, 0.0, True) for variant in VARIANTS],
        columns=["variant", "draw", "angle_deg", "score", "collapsed", "chosen"],
    )
    problems = pd.DataFrame(
        [("random plane", 1, "no admissible angle of 3: at each too many answers collapse")],
        columns=["variant", "draw", "problem"],
    )
    made_sweep(folder)
    table = pd.DataFrame(rows).replace({"metric": {**(names or {})}})
    scanned = pd.DataFrame(scan).rename(columns={**(names or {})})
    result = AblationResult(config, table, scanned, choices, problems)
    save(result, folder / "ablations")
    return result


@pytest.fixture
def report(tmp_path: Path) -> Contents:
    made_ablation(tmp_path / "ablations")
    return gather(tmp_path / "ablations")


def test_the_verdict_names_what_differs_and_what_is_not_shown_to(tmp_path: Path) -> None:
    told = said(made_ablation(tmp_path).table)
    assert told[0].headline == (
        "1 of 2 variants differ from the full method in the refusal score of harmful prompts (nats)"
    )
    assert told[0].detail == "Differing: all sites −1.0. Not shown to differ: random plane."
    assert "in the share of answers to them that collapse" in told[1].headline
    assert "all sites +1.40" in told[1].detail


def test_each_variant_is_a_curve_its_draws_a_range_and_harmless_prompts_stand_beside(
    tmp_path: Path,
) -> None:
    series, drawn = curves(made_ablation(tmp_path).scan)
    assert [one.role for one in series] == ["method", "variant", "random", "harmless"]
    rows = drawn.set_index(["series", "angle_deg"])
    assert rows.loc[(FULL, 180.0), "refusal_score"] == -3.0
    assert rows.loc[(FULL, 180.0), "refusal_score_unsteered"] == 3.0
    ends = [rows.loc[("random plane", 90.0), f"refusal_score{end}"] for end in ("_low", "_high")]
    assert ends == pytest.approx([3.025, 3.975])  # 2.5 % to 97.5 % of the draws
    assert {*drawn["n"]} == {2}


def test_the_page_has_the_table_the_answers_the_problems_and_the_command(report: Contents) -> None:
    assert report.title == "made-up · refusal · ablations"
    assert report.start_deg == 180
    table = report.tables[0].rows.set_index(["variant", "prompts"])
    assert "*" in table.loc[("all sites", "harmful (2)")].to_string()
    assert "*" not in table.loc[("random plane", "harmful (2)")].to_string()
    assert table.loc[("random plane", "harmful (2)"), "angle"] == "180°; 90°"
    assert len(report.samples) > 0
    assert any("random plane, draw 1, has no answers: no admissible" in n for n in report.notes)
    text = page(report)
    assert "ss-lens ablate --model folder/made-up --dataset refusal --out" in text
    assert "--angles 0,90,180 --dev 2 --test 2 --draws 4" in text
    assert 'id="dial"' in text


def test_an_ablation_that_is_not_finished_is_shown_as_the_sweep_that_it_is(tmp_path: Path) -> None:
    made_ablation(tmp_path)
    shutil.rmtree(tmp_path / "ablations")
    assert "A sweep: " in gather(tmp_path).subtitle


def test_a_damaged_ablation_is_one_line(tmp_path: Path) -> None:
    made_ablation(tmp_path)
    (tmp_path / "ablations" / "scan.parquet").write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="its checksum differs"),
        pytest.raises(UserError, match="is damaged; run `ss-lens ablate` again"),
    ):
        gather(tmp_path)


def test_only_an_ablation_of_the_same_calibration_stands_beside_a_run(tmp_path: Path) -> None:
    made_ablation(tmp_path / "b")
    (tmp_path / "run").mkdir()
    asked = ablations_of(RunConfig(dev=2, test=2), "made-up", "refusal")
    found = beside(tmp_path / "run", asked, 5)
    assert found is not None
    assert found[0].name == "b"
    for other in (
        replace(asked, dev=3),
        replace(asked, seed=1),
        replace(asked, model="another"),
        replace(asked, dataset="language"),
        replace(asked, chat=ChatFormat(system="Be kind.")),
    ):
        assert beside(tmp_path / "run", other, 5) is None
    assert beside(tmp_path / "run", asked, 6) is None
    (tmp_path / "b" / "ablations" / "scan.parquet").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="its checksum differs"):
        assert beside(tmp_path / "run", asked, 5) is None


def test_the_command_of_a_runs_ablations_has_its_split_and_its_format() -> None:
    config = RunConfig(dev=4, seed=3, max_new_tokens=48, chat=ChatFormat(system="Be kind."))
    line = ablate_command(ablations_of(config, "m", "mine.jsonl"), "runs/ablations")
    assert line == (
        "ss-lens ablate --model m --dataset path/to/mine.jsonl --out runs/ablations --dev 4 "
        "--seed 3 --max-new-tokens 48 --system 'Be kind.'"
    )


def test_the_commands_name_the_precision_and_the_behaviour_where_they_are_others() -> None:
    config, folder = RunConfig(dev=4), Path("runs/a")
    line = run_command(config, "m", "words", folder, behaviour_given("mine"), "bfloat16")
    assert line == (
        "ss-lens run --model m --behaviour path/to/mine.yaml --out runs/a --dev 4 --dtype bfloat16"
    )
    asked = ablations_of(config, "m", "words", "bfloat16")
    assert ablate_command(asked, "b", behaviour_given("language")) == (
        "ss-lens ablate --model m --behaviour language --out b --dev 4 --max-new-tokens 48 "
        "--dtype bfloat16"
    )
    assert "--dtype" not in run_command(config, "m", "refusal", folder, behaviour_given(None))


def test_an_ablation_of_another_behaviour_is_reported_and_drawn_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, behaviour="language")
    names = {"refusal_score": "behaviour_score", "opening_mass": "behaviour_mass"}
    made_ablation(tmp_path, config, names)
    report = gather(tmp_path)
    assert "in the language score of positive prompts (nats)" in report.verdict[0].headline
    assert report.measures[0].column == "behaviour_score"
    assert {*report.classes.values()} == {"positive", "negative"}
    assert report.series[-1].name == f"{FULL}, negative prompts"
    assert "positive (2)" in report.tables[0].rows["prompts"].tolist()
    assert "--behaviour language" in report.commands[0].line
    monkeypatch.setattr("sys.stdout", StringIO())
    draw_ablations(tmp_path, paper=True)
    written = (tmp_path / "figures" / "paper" / "angle_polar.md").read_text("utf-8")
    assert "positive prompts" in written
    assert "behaviour_score" in (tmp_path / "figures" / "angle_polar.csv").read_text("utf-8")
