"""What a report says agrees with what was measured; what is missing is said and stays usable."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.report import Contents, gather, page, write_report
from analyses.report.contents import UNSTEERED, Said
from analyses.report.packed import packed
from analyses.report.sources import notes
from analyses.report.sources.run import curves, said
from analyses.report.sources.site_map import in_plane_share, measure
from ss_lens import Activations, ContrastiveDataset, Plane, RunConfig, Site, Store, UserError
from ss_lens.core.files import sha256_of_file
from ss_lens.core.sealed import write_sealed_json
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.dial.ways import METHOD, SAME, UNIFORM
from tests.analyses.made_reports import HOSTILE, made_sweep
from tests.conftest import made_activations

SITES = (Site(0, "ln1_out"), Site(0, "ln2_out"), Site(1, "ln1_out"), Site(1, "ln2_out"))
CONFIG = RunConfig(angles_deg=(0, 90), dev=1, test=2, max_new_tokens=3, draws=2, rule="uniform")


def _opposite(n: int = 12, width: int = 6) -> Activations:
    """Classes at ± 3 along the first axis and 4 along the last, the rest noise of 1e-3."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for sign in (1.0, -1.0):
        h = 1e-3 * torch.randn(n, len(SITES), width, generator=generator)
        h[..., 0] += 3 * sign
        h[..., -1] += 4
        sides.append(h)
    return made_activations(*sides, SITES)


def test_the_map_finds_means_sides_and_the_share_in_the_plane_in_closed_form() -> None:
    acts = _opposite()
    table = measure(acts, ss_lens.calibrate(acts, rule="uniform"), n_resamples=200)
    np.testing.assert_allclose(table["positive_mean"], 0.6, atol=1e-3)
    np.testing.assert_allclose(table["negative_mean"], -0.6, atol=1e-3)
    assert table["positive_settled"].all()
    assert table["negative_settled"].all()
    np.testing.assert_allclose(table["direction_cosine"], 1, atol=1e-3)
    assert table["site"].tolist() == [str(site) for site in SITES]
    assert table["is_direction_site"].sum() == 1


def test_classes_that_do_not_differ_settle_no_side() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(40, len(SITES), 6, generator=generator) for _ in range(2)]
    acts = made_activations(*noise, SITES)
    table = measure(acts, ss_lens.calibrate(_opposite(), rule="uniform"), n_resamples=500)
    settled = pd.concat([table["positive_settled"], table["negative_settled"]])
    assert settled.mean() < 0.5
    assert table["positive_mean"].abs().max() < 0.25


def test_the_map_of_a_single_prompt_has_means_and_settles_nothing() -> None:
    acts = _opposite()
    one = made_activations(acts.positive[:1], acts.negative[:1], SITES)
    table = measure(one, ss_lens.calibrate(acts, rule="uniform"))
    assert not table[["positive_settled", "negative_settled"]].to_numpy().any()
    np.testing.assert_allclose(table["positive_mean"], 0.6, atol=1e-3)


def test_a_rotation_moves_an_activation_by_the_share_in_the_plane() -> None:
    plane = Plane(torch.eye(5)[0], torch.eye(5)[1])
    h = torch.randn(7, 1, 5, generator=torch.Generator().manual_seed(2))
    for angle in (30.0, 180.0, 300.0):
        moved = ss_lens.RotateBy(angle).apply(h, plane) - h
        expected = 2 * math.sin(math.radians(angle) / 2) * in_plane_share(h, plane)
        torch.testing.assert_close(moved.norm(dim=-1) / h.norm(dim=-1), expected)
    outside = torch.eye(5)[2:4].unsqueeze(1)
    assert in_plane_share(outside, plane).abs().max() == 0


def test_the_curve_of_random_planes_is_the_mean_and_range_of_their_draws() -> None:
    rows = [(METHOD, 0, 0.0, 2.0), (METHOD, 0, 90.0, -1.0), (SAME, 0, 0.0, 3.0)]
    rows += [(UNIFORM, draw, 90.0, score) for draw, score in enumerate((1.0, 2.0, 6.0))]
    dial = pd.DataFrame(rows, columns=["way", "draw", "angle_deg", "refusal_score"])
    dial = dial.assign(prompt_class="positive", opening_mass=0.5, n=8)
    series, table = curves(dial)
    assert [one.role for one in series] == ["method", "variant", "random"]
    drawn = table.set_index("series").loc["random planes, uniform"]
    found = drawn[["refusal_score", "refusal_score_low", "refusal_score_high", "draws"]].tolist()
    assert found == pytest.approx([3.0, 1.05, 5.8, 3])  # 2.5 % and 97.5 % of them
    assert drawn["refusal_score_unsteered"] == 3.0  # on the prompts of the random planes
    method = table.loc[table["series"] == "rotate_by, steered sites"]
    assert method["refusal_score_low"].isna().all()
    assert method["refusal_score_unsteered"].tolist() == [2.0, 2.0]


def test_the_verdict_is_split_at_its_senses_and_no_word_is_lost() -> None:
    told = "Refusal turned down at 180°: by -8.6, in 8 by -1.0. Nothing turned refusal up: x."
    assert said(told) == (
        Said("Refusal turned down at 180°", "By −8.6, in 8 by −1.0."),
        Said("Nothing turned refusal up", "X."),
    )
    assert said("") == ()


@pytest.fixture(scope="module")
def run(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Store]:
    folder = tmp_path_factory.mktemp("report")
    store = Store(folder / "store")
    ss_lens.run_main_job(tiny_models["qwen2"], tiny_data, folder / "run", CONFIG, store=store)
    return folder / "run", store


@pytest.fixture
def changeable(run: tuple[Path, Store], tmp_path: Path) -> tuple[Path, Store]:
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run", run[1]


def test_the_report_of_a_run_holds_its_dial_answers_sites_and_commands(
    run: tuple[Path, Store],
) -> None:
    folder, store = run
    made, loaded = gather(folder, store=store), ss_lens.load_run(folder)
    assert made.notes == ()
    assert " ".join(made.verdict[0].headline.split()) in loaded.verdict.replace("-", "−")
    assert made.sites is not None
    assert made.norms is not None
    assert made.sites["selected"].all()
    assert {*made.curves["angle_deg"]} == {0.0, 90.0}
    steered = made.samples.loc[made.samples["arm"] != UNSTEERED]
    assert len(made.samples) == len(loaded.responses)
    assert (steered["angle_deg"] == 90).all()
    assert "--angles 0,90 --rule uniform --dev 1 --test 2" in made.commands[0].line
    assert made.tables[0].rows["refused [95 %]"].iloc[0].startswith("0.00 [0.00, ")
    text = page(made)
    for key in loaded.activations.values():
        assert key in text


def test_the_tokens_that_a_turn_moved_stand_under_their_answers(run: tuple[Path, Store]) -> None:
    made, loaded = gather(run[0], store=run[1]), ss_lens.load_run(run[0])
    told = packed(made)["moved"]
    assert len(told["row"]) == len(loaded.moved) > 0
    of_rows = made.samples.reset_index(drop=True).loc[told["row"]]
    assert {*of_rows["prompt_class"]} == {"negative"}
    assert of_rows["angle_deg"].tolist() == loaded.moved["angle_deg"].tolist()
    assert [*map(len, told["tokens"])] == [*map(len, told["of"])]
    assert "in stronger colour the further moved" in page(made)
    bare = replace(made, moved=None)
    assert packed(bare)["moved"] is None
    assert "No trace of single tokens is stored" in page(bare)


def test_a_run_names_the_command_of_its_ablations(run: tuple[Path, Store]) -> None:
    made = gather(run[0], store=run[1])
    lines = {command.purpose: command.line for command in made.commands}
    (line,) = [line for purpose, line in lines.items() if "ablations" in purpose]
    assert line.startswith("ss-lens ablate --model ")
    assert f"--out {run[0].parent / 'ablations'} --angles 0,90 --dev 1 --test 2" in line
    assert not [table for table in made.tables if table.title.startswith("Ablations")]


def test_an_unfinished_run_says_what_is_missing_and_which_command_makes_it(
    changeable: tuple[Path, Store],
) -> None:
    folder, store = changeable
    (folder / "tables.json").unlink()
    made = gather(folder, store=store)
    assert "not finished: the dial, the choice of angles, the answers" in made.notes[0]
    assert re.search(rf"ss-lens run --model \S*{made.title.split(' · ')[0]} ", made.notes[0])
    assert f"--out {folder}" in made.notes[0]
    assert made.sites is not None
    assert 'id="map"' in page(made)
    shutil.rmtree(folder / "calibration")
    bare = gather(folder, store=store)
    assert bare.sites is None
    assert "not finished" in page(bare)


def test_a_run_whose_activations_are_gone_is_shown_without_them(
    run: tuple[Path, Store], tmp_path: Path
) -> None:
    made = gather(run[0], store=Store(tmp_path / "elsewhere"))
    (note,) = made.notes
    assert note.startswith("The map has no class means, and there is no norm growth:")
    assert made.norms is None
    assert made.sites is not None
    assert "positive_mean" not in made.sites
    assert 'id="map"' in page(made)


def test_parts_of_two_versions_or_two_runs_are_said_to_be_mixed(
    changeable: tuple[Path, Store],
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path: Path,
) -> None:
    folder, store = changeable
    told = json.loads((folder / "run.json").read_text())
    del told["sha256"]
    write_sealed_json(folder / "run.json", {**told, "ss_lens": "0.0.1"})
    assert any("Versions are mixed: the run 0.0.1" in note for note in gather(folder).notes)
    other = ContrastiveDataset("other", tiny_data.negative, tiny_data.positive)
    acts = ss_lens.capture(tiny_models["qwen2"], other, store=store)
    ss_lens.calibrate(acts, rule="uniform").save(folder / "calibration", overwrite=True)
    notes = gather(folder, store=store).notes
    assert any("two runs were mixed" in note for note in notes)


def test_scores_of_a_run_that_are_no_numbers_are_counted_and_the_others_are_kept(
    changeable: tuple[Path, Store],
) -> None:
    folder, store = changeable
    for name, column in (("responses.csv", "refusal_score"), ("dial.csv", "opening_mass")):
        table = pd.read_csv(folder / name, keep_default_na=name == "dial.csv")
        table.loc[table.index[:1], column] = np.nan
        table.to_csv(folder / name, index=False)
    scores = pd.read_csv(folder / "scores.csv")
    scores.loc[1:, [name for name in scores if name.startswith("refusal_")]] = np.nan
    scores.to_csv(folder / "scores.csv", index=False)
    told = json.loads((folder / "tables.json").read_text())
    digests = {name: sha256_of_file(folder / name) for name in told if name.endswith(".csv")}
    write_sealed_json(folder / "tables.json", {"verdict": told["verdict"], **digests})
    made = gather(folder, store=store)
    n = len(made.samples)
    assert any(f"in the answers are not numbers: refusal_score (1) of {n}" in a for a in made.notes)
    assert any("in the dial are not numbers: opening_mass (1) of" in a for a in made.notes)
    assert made.samples["refusal_score"].notna().sum() == n - 1
    assert "–" in made.tables[0].rows["refused [95 %]"].tolist()
    assert not re.search(r"\bnan\b", page(made).partition("<script>")[0])


def test_a_run_of_an_earlier_version_has_answers_and_says_what_it_lacks(
    changeable: tuple[Path, Store],
) -> None:
    folder, store = changeable
    told = json.loads((folder / "run.json").read_text())
    del told["sha256"]
    write_sealed_json(folder / "run.json", {**told, "format": 2})
    made = gather(folder, store=store)
    assert any("earlier version, which measured no dial" in note for note in made.notes)
    assert made.curves.empty
    assert 'id="answers"' in page(made)


def test_a_sweep_is_drawn_by_arm_with_the_range_of_its_seeds(tmp_path: Path) -> None:
    made_sweep(tmp_path, seeds=3)
    made = gather(tmp_path)
    assert [series.role for series in made.series] == ["method", "harmless", "random", "random"]
    assert made.start_deg == 180
    assert made.notes == ()
    rows = made.curves.set_index(["series", "angle_deg"])
    method, drawn = made.series[0].name, made.series[2].name
    assert rows.loc[(method, 180.0), "refusal_score"] == pytest.approx(-2)
    assert rows.loc[(method, 180.0), "refused_high"] == pytest.approx(0.6576, abs=1e-4)  # Wilson
    assert rows.loc[(drawn, 90.0), "draws"] == 3
    found = [rows.loc[(drawn, 90.0), f"refusal_score{end}"] for end in ("_low", "", "_high")]
    assert found == pytest.approx([2.05, 3.0, 3.95])
    assert rows.loc[(method, 0.0), "refusal_score_unsteered"] == 2.0


def test_refusals_that_were_counted_by_phrases_are_said_to_be() -> None:
    (note,) = notes.about_refusals(pd.DataFrame({"refused": [True]}))
    assert note.startswith("This result counts refusals by their opening phrases")
    assert not notes.about_refusals(pd.DataFrame({"refused": [True], "refused_phrases": [True]}))
    assert not notes.about_refusals(pd.DataFrame({"refusal_score": [1.0]}))


def test_a_sweep_that_was_run_has_a_report_with_its_choices(
    tiny_folders: dict[str, Path], prompts_file: Path, tmp_path: Path
) -> None:
    """On dev no KL is measured, on test all angles but the chosen ones are missing."""
    same = {"model": str(tiny_folders["qwen2"]), "dataset": str(prompts_file)}
    same |= {"selection": "uniform", "angles_deg": [0, 120, 240]}
    drawn = {**same, "plane": "RandomPlane(seed={seed})", "seed": [0, 1]}
    limits = {"max_perplexity": None, "max_repetition": None, "max_collapsed": 1}
    config = SweepConfig(
        grid=[same, drawn, {**same, "operator": "Ablate"}],
        split={"dev": 2, "test": 2, "seed": 0},
        parts="dev",
        max_new_tokens=4,
        choose={"score": "refusal_score", "goal": "minimise", **limits},
    )
    folder = tmp_path / "sweep"
    result = ss_lens.run_sweep(config, folder, store=Store(tmp_path / "store"))
    made = gather(folder)
    assert made.title == f"{tiny_folders['qwen2'].name} · tiny.jsonl"
    assert "what answers positive prompts" in page(made)  # nobody said that they are harmful
    assert "harmful" not in page(made).split("<script")[0]
    assert made.notes == ()
    assert [series.role for series in made.series][:2] == ["method", "harmless"]
    assert made.curves.loc[made.curves["series"] == made.series[0].name, "n"].tolist() == [2] * 3
    assert made.start_deg == result.choices[0].choice.angle_deg
    assert len(made.tables[0].rows) == len(result.choices) == 4
    assert len(made.samples) == len(result.table) + len(result.unsteered)
    method = made.samples.loc[made.samples["arm"] == "RotateBy · PC1()"]
    assert {*method["part"]} == {"dev", "test"}
    assert page(made).count("NaN") == 0


def test_a_sweeps_answers_to_harmful_prompts_are_cut_unless_asked_for(tmp_path: Path) -> None:
    made_sweep(tmp_path)
    for keep in (False, True):
        samples = gather(tmp_path, keep_answers=keep).samples
        harmful = samples.loc[samples["prompt_class"] == "positive"]
        assert harmful["shortened"].tolist() == [not keep] * len(harmful)
        assert harmful["response"].str.endswith("eight").sum() == keep * 24
        harmless = samples.loc[samples["prompt_class"] == "negative"]
        assert not harmless["shortened"].any()


def test_scores_that_are_no_numbers_are_counted_and_drawn_as_gaps(tmp_path: Path) -> None:
    made_sweep(tmp_path, refusal_score=np.nan)
    made = gather(tmp_path)
    assert any("refusal_score (48) of 48 rows" in note for note in made.notes)
    assert "NaN" not in page(made).split('id="data">')[1].split("</script>")[0]


def test_one_prompt_per_class_is_said(tmp_path: Path) -> None:
    made_sweep(tmp_path, n_prompts=1)
    assert any("one prompt only in: test, harmful" in note for note in gather(tmp_path).notes)


def test_two_hundred_angles_make_a_page(tmp_path: Path) -> None:
    made_sweep(tmp_path, n_angles=200, seeds=1)
    made = gather(tmp_path)
    assert made.curves["angle_deg"].nunique() == 200
    assert len(page(made)) < 3_000_000


def test_a_report_goes_where_it_is_told_and_a_wrong_folder_is_named(
    run: tuple[Path, Store], tmp_path: Path
) -> None:
    made_sweep(tmp_path / "sweep")
    assert write_report(tmp_path / "sweep") == tmp_path / "sweep" / "report.html"
    out = tmp_path / "deep" / "page.html"
    assert write_report(tmp_path / "sweep", out) == out
    assert "</html>" in out.read_text("utf-8")
    with pytest.raises(UserError, match=r"no run .*, no sweep .*; give a folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no sweep, and --keep-answers of .*Leave it out"):
        write_report(run[0], keep_answers=True)
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "paper.json").write_text("{}")
    with pytest.raises(UserError, match=r"no methods.csv; .* Run the same command again"):
        write_report(tmp_path / "paper")


def test_a_sweep_resumes_beside_its_report(tmp_path: Path) -> None:
    made_sweep(tmp_path)
    write_report(tmp_path)
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "cells").mkdir(exist_ok=True)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged and is written again"):
        made_sweep(tmp_path)
    assert isinstance(gather(tmp_path), Contents)
    assert HOSTILE not in page(gather(tmp_path))
