"""Slopes of known lines, surfaces that explain all or nothing, and questions scored by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import ss_lens
from analyses.steerability import (
    Question,
    contrast,
    explained,
    figure,
    findings,
    measure,
    read_questions,
    score_questions,
    summarise,
    surface_of,
    transfer,
)
from analyses.steerability.__main__ import main
from analyses.steerability.scored import of_questions
from ss_lens import ContrastiveDataset, RotateBy, UserError
from tests.conftest import shared_file

ANGLES = (0.0, 30.0, 90.0, 120.0)


def lines(slopes: np.ndarray, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Scores that lie on a straight line of each prompt, or near it."""
    rng = np.random.default_rng(seed)
    rows = [
        {"prompt_index": i, "angle_deg": angle, "refusal_score": 2.0 + i + slope * angle}
        for i, slope in enumerate(slopes)
        for angle in ANGLES
    ]
    table = pd.DataFrame(rows)
    return table.assign(refusal_score=table["refusal_score"] + noise * rng.normal(size=len(table)))


# --- Slopes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("goal", "sign"), [("raise", 1), ("lower", -1)])
def test_slopes_of_straight_lines_are_found_and_their_signs_are_read_by_the_goal(
    goal: str, sign: int
) -> None:
    slopes = np.array([0.05, -0.02, 0.0, 0.1])
    table = measure(lines(slopes), goal).sort_values("prompt_index")
    assert table["slope"].tolist() == pytest.approx(slopes.tolist())
    assert table["change"].tolist() == pytest.approx((120 * slopes).tolist())
    assert table["toward"].tolist() == pytest.approx((sign * 120 * slopes).tolist(), abs=1e-9)
    assert table["at_lowest"].tolist() == pytest.approx([2, 3, 4, 5])
    assert table["linearity"].dropna().tolist() == pytest.approx([1, 1, 1])
    assert table["linearity"].isna().tolist() == [False, False, True, False]
    expected = {1: [False, True, False, False], -1: [True, False, False, True]}
    assert table["wrong_way"].tolist() == expected[sign]
    assert (table["n_strengths"] == 4).all()


def test_slopes_equal_numpys_least_squares_on_noisy_scores() -> None:
    scores = lines(np.linspace(-0.1, 0.1, 7), noise=3.0)
    table = measure(scores.sample(frac=1, random_state=1), "raise").set_index("prompt_index")
    for prompt, rows in scores.groupby("prompt_index"):
        slope, start = np.polyfit(rows["angle_deg"], rows["refusal_score"], 1)
        correlation = np.corrcoef(rows["angle_deg"], rows["refusal_score"])[0, 1]
        found = table.loc[prompt]
        assert found["slope"] == pytest.approx(slope)
        assert found["at_lowest"] == pytest.approx(start)
        assert found["linearity"] == pytest.approx(correlation**2)


@pytest.mark.parametrize("score", [0.1, -3.3, 1e6 + 0.1])
def test_a_score_that_does_not_change_goes_no_way(score: float) -> None:
    """To the last bit: a mean of equal numbers may be rounded."""
    table = measure(lines(np.zeros(3)).assign(refusal_score=score), "lower")
    assert (table["toward"] == 0).all()
    assert not table["wrong_way"].any()
    assert table["linearity"].isna().all()


def test_two_prompts_have_a_spread_without_an_interval() -> None:
    row = summarise(measure(lines(np.array([0.1, 0.3])), "raise")).iloc[0]
    assert row["spread"] == pytest.approx(120 * 0.2 / np.sqrt(2))
    assert np.isnan([row["spread_low"], row["spread_high"]]).all()
    assert row["low"] == pytest.approx(12)
    assert row["high"] == pytest.approx(36)


def test_a_summary_holds_the_mean_the_spread_and_the_share_of_the_wrong_way() -> None:
    slopes = np.array([0.1, 0.2, -0.1, 0.3, -0.2, 0.4, 0.5, 0.6])
    scores = pd.concat(
        [lines(slopes).assign(part="a"), lines(slopes[:4]).assign(part="b")], ignore_index=True
    )
    table = summarise(measure(scores, "raise", by=["part"]), by=["part"]).set_index("part")
    assert table.loc["a", "toward"] == pytest.approx(120 * slopes.mean())
    assert table.loc["a", "spread"] == pytest.approx(120 * slopes.std(ddof=1))
    assert table.loc["a", "wrong_way"] == 0.25
    assert table.loc["a", "low"] < table.loc["a", "toward"] < table.loc["a", "high"]
    assert table.loc["a", "spread_low"] < table.loc["a", "spread"] < table.loc["a", "spread_high"]
    assert (table.loc["a", "wrong_low"], table.loc["a", "wrong_high"]) == pytest.approx(
        (0.0715, 0.5907), abs=1e-3
    )
    assert table["n"].tolist() == [8, 4]
    alike = summarise(measure(lines(np.full(3, 0.1)), "lower"))
    assert alike["wrong_way"].tolist() == [1.0]
    assert alike["spread"].tolist() == pytest.approx([0.0], abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="refusal_score"), "no column refusal_score; they have"),
        (lambda t: t[t["angle_deg"] == 0], "got 1 strengths of 3 prompts, expected at least 2"),
        (lambda t: t[t["prompt_index"] == 0], "got 4 strengths of 1 prompts"),
        (lambda t: t.iloc[1:], "1 of 12 scores are missing, NaN or infinite"),
        (lambda t: t.assign(refusal_score=np.nan), "12 of 12 scores are missing"),
        (lambda t: pd.concat([t, t]), "the same angle_deg twice"),
    ],
)
def test_scores_without_slopes_are_refused(change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(change(lines(np.array([0.1, 0.2, 0.3]))), "raise")
    with pytest.raises(UserError, match="goal must be one of raise, lower; got 'up'"):
        measure(lines(np.array([0.1, 0.2])), "up")
    one = measure(lines(np.array([0.1, 0.2])), "raise").head(1)
    with pytest.raises(UserError, match="needs at least 2 of them; got 1"):
        summarise(one)


# --- Surface -------------------------------------------------------------------------------------


def test_a_surface_that_is_the_whole_cause_explains_everything_and_others_what_they_share() -> None:
    """Two orthogonal ±1 features with weights 3 and 1: shares of 0.9 and 0.1."""
    first = np.tile([1.0, -1.0], 20)
    second = np.tile([1.0, 1.0, -1.0, -1.0], 10)
    table = explained(3 * first + second + 5, {"first": first, "second": second}, n_draws=400)
    found = table.set_index("feature")["r2"]
    assert found.to_dict() == pytest.approx(
        {"first": 0.9, "second": 0.1, "all together": 1.0}, abs=1e-9
    )
    p_values = table.set_index("feature")["p_value"]
    assert p_values["first"] == pytest.approx(1 / 401)
    assert (table["low"] <= table["r2"] + 1e-9).all()
    assert (table["r2"] <= table["high"] + 1e-9).all()


def test_unrelated_surfaces_explain_what_chance_does_and_their_p_values_are_uniform() -> None:
    """The negative control: R² of k unrelated features is k / (n − 1) on average."""
    rng, n = np.random.default_rng(4), 30
    p_values, shares = [], []
    for _ in range(120):
        features = {name: rng.normal(size=n) for name in ("a", "b", "c")}
        table = explained(rng.normal(size=n), features, n_draws=100).set_index("feature")
        p_values.append(table.loc["all together", "p_value"])
        shares.append(table.loc["all together", "r2"])
        assert table.loc["all together", "chance"] == pytest.approx(3 / 29, abs=0.03)
    assert np.mean(shares) == pytest.approx(3 / 29, abs=0.02)
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.08)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.09)


def test_features_that_repeat_one_another_count_once_and_constant_ones_not_at_all() -> None:
    x = np.arange(12.0)
    y = np.random.default_rng(0).normal(size=12)
    twice = explained(y, {"x": x, "same": 2 * x + 1, "constant": np.ones(12)}, n_draws=50)
    assert twice["feature"].tolist() == ["x", "same", "all together"]
    assert np.ptp(twice["r2"]) == pytest.approx(0, abs=1e-9)
    for values, features, message in (
        (y, {"x": x[:5]}, "got 5 rows of features and 12 values"),
        (y, {"constant": np.ones(12)}, "none of the features constant differs"),
        (np.ones(12), {"x": x}, "all the same or not finite cannot be explained"),
    ):
        with pytest.raises(UserError, match=message):
            explained(values, features)
    seen = surface_of(["How are you?", "Go home now."])
    assert seen["words"].tolist() == [3, 3]
    assert seen["characters"].tolist() == [12, 12]
    assert seen["is a question"].tolist() == [True, False]


# --- Transfer ------------------------------------------------------------------------------------


def test_transfer_keeps_the_order_where_slopes_only_shrink_and_reverses_it_where_they_flip() -> (
    None
):
    slopes = np.random.default_rng(2).normal(size=20)
    factors = {"none": 1.0, "shrunk": 0.5, "flipped": -1.0}
    scores = pd.concat(
        [lines(factor * slopes).assign(system=name) for name, factor in factors.items()]
    )
    table = transfer(measure(scores, "raise", by=["system"]), "system")
    table = table.set_index(["first", "second"])
    assert table.loc[("none", "shrunk"), "rank_correlation"] == pytest.approx(1)
    assert table.loc[("none", "flipped"), "rank_correlation"] == pytest.approx(-1)
    shrunk = table.loc[("none", "shrunk")]
    assert shrunk["difference"] == pytest.approx(-60 * slopes.mean())
    assert shrunk["difference_low"] < shrunk["difference"] < shrunk["difference_high"]
    assert shrunk["n"] == 20


def test_the_order_of_unrelated_slopes_is_not_kept() -> None:
    rng = np.random.default_rng(9)
    scores = [lines(rng.normal(size=60)).assign(system=name) for name in "ab"]
    row = transfer(measure(pd.concat(scores), "raise", by=["system"]), "system").iloc[0]
    assert row["rank_low"] < 0 < row["rank_high"]
    alone = measure(scores[0], "raise", by=["system"])
    with pytest.raises(UserError, match="the column 'system' holds 1"):
        transfer(alone, "system")
    other = alone.assign(system="b", prompt_index=alone["prompt_index"] + 100)
    with pytest.raises(UserError, match="'a' and 'b' have 0 prompts in common"):
        transfer(pd.concat([alone, other]), "system")
    with pytest.raises(UserError, match="a prompt occurs twice under one system"):
        transfer(pd.concat([alone, alone, other]), "system")


# --- Questions -----------------------------------------------------------------------------------


QUESTIONS = [
    Question("is it so", "(A)", "(B)"),
    Question("or is it not so at all", "(B)", "(A)"),
    Question("what now", "Yes", "No"),
]


def test_questions_are_scored_as_by_hand_at_the_token_where_the_answers_differ(
    tiny_models: dict[str, TransformerBridge],
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
) -> None:
    model, folder = tiny_models["qwen2"], tiny_folders["qwen2"]
    acts = ss_lens.capture(model, tiny_data)
    calibration = ss_lens.calibrate(acts, rule=ss_lens.Explicit(sites="L1.ln1_out,L2.ln2_out"))
    table = score_questions(model, calibration, RotateBy, QUESTIONS, [0, 120])
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for index, question in enumerate(QUESTIONS):
        turns = [{"role": "user", "content": question.text}]
        context = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        sides = [
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (question.matching, question.other)
        ]
        place = next(i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b)
        with torch.inference_mode():
            ids = torch.tensor([[*context, *sides[0][:place]]])
            logp = plain(ids).logits[0, -1].double().log_softmax(-1)
        row = table[(table["prompt_index"] == index) & (table["angle_deg"] == 0)].iloc[0]
        pair = [float(logp[side[place]]) for side in sides]
        assert row["matching_score"] == pytest.approx(pair[0] - pair[1], abs=1e-4)
        assert row["answer_mass"] == pytest.approx(sum(np.exp(pair)), rel=1e-3)
    turned = table.pivot(index="prompt_index", columns="angle_deg", values="matching_score")
    assert (turned[0] - turned[120]).abs().min() > 1e-4


def test_swapping_the_answers_changes_the_sign_of_the_score(
    tiny_models: dict[str, TransformerBridge], tiny_data: ContrastiveDataset
) -> None:
    model = tiny_models["qwen2"]
    calibration = ss_lens.calibrate(ss_lens.capture(model, tiny_data), rule="uniform")
    swapped = [Question(q.text, q.other, q.matching) for q in QUESTIONS]
    one, other = (
        score_questions(model, calibration, RotateBy, asked, [90])["matching_score"]
        for asked in (QUESTIONS, swapped)
    )
    assert one.tolist() == pytest.approx((-other).tolist(), abs=1e-4)
    with pytest.raises(UserError, match="there is no question to score"):
        score_questions(model, calibration, RotateBy, [], [90])


def test_the_same_answers_and_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two answers that differ; got 'is it'"):
        Question("is it", "(A)", "(A)")
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({"question": "is it", "answer": "(A)"}))
    with pytest.raises(UserError, match="has no column 'answer_matching_behavior'"):
        read_questions(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(path)
    rows = {"answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}
    path.write_text("\n".join([json.dumps({"question": "is it", **rows})] * 2))  # once is enough
    (question,) = read_questions(path)
    assert question == Question("is it", "(A)", "(B)")
    assert question.surface == {"words": 2.0, "characters": 5.0, "option order": 1.0}
    made = contrast([question], "some")
    assert made.positive == ("is it\n\nAnswer: (A)",)
    assert made.negative == ("is it\n\nAnswer: (B)",)


def test_all_files_of_the_model_written_evaluations_are_read() -> None:
    folder = shared_file("data/mwe")
    for path in sorted(folder.glob("*.jsonl")):
        questions = read_questions(path)
        assert 190 < len({q.text for q in questions}) == len(questions) <= 200
        assert 0.3 < np.mean([q.surface["option order"] for q in questions]) < 0.7


@pytest.mark.parametrize("across", [False, True])
def test_the_command_takes_several_sets_each_with_its_own_calibration(
    across: bool,
    tiny_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [
            {
                "question": f"{name} {i}",
                "answer_matching_behavior": " (A)" if i % 2 else " (B)",
                "answer_not_matching_behavior": " (B)" if i % 2 else " (A)",
            }
            for i in range(10)
        ]
        files[-1].write_text("\n".join(map(json.dumps, rows)))
    model, out = str(tiny_folders["qwen2"]), tmp_path / "out"
    given = {"model": model, "train": 6, "test": 4, "step": 90.0, "rule": "uniform", "out": out}
    main(questions=files, across=across, **given)
    summary = pd.read_csv(out / "steerability_summary.csv")
    assert len(summary) == (4 if across else 2)
    assert (out / "steerability_transfer.csv").exists() == across
    assert capsys.readouterr().out.count("\n- ") >= 2
    with pytest.raises(UserError, match="--across steers each set by the calibrations"):
        main(questions=files[:1], across=True, **given)


def test_a_table_of_questions_has_sets_calibrations_and_system_prompts(
    tiny_models: dict[str, TransformerBridge],
) -> None:
    model = tiny_models["qwen2"]
    files = {
        name: [Question(f"{name} {i}", *("(A)", "(B)")[:: 1 if i % 2 else -1]) for i in range(9)]
        for name in ("one", "two")
    }
    table = of_questions(
        *(model, files, RotateBy, [0.0, 90.0]),
        n_train=6,
        n_test=3,
        systems=["be odd"],
        across=True,
        rule="uniform",
    )
    assert len(table) == 2 * 2 * 2 * 2 * 3
    by = ["dataset", "calibrated_on", "system"]
    slopes = measure(table, "lower", score="matching_score", by=by)
    assert len(slopes) == 24
    moved = transfer(slopes, "system", among=["dataset", "calibrated_on"])
    assert moved["n"].tolist() == [12]
    with pytest.raises(UserError, match=r"one has 9 questions; .* 8 .* and 3 others"):
        of_questions(model, files, RotateBy, [0.0, 90.0], n_train=8, n_test=3)


def test_findings_and_figure_say_how_many_go_the_wrong_way() -> None:
    slopes = np.array([0.1, 0.2, -0.1, 0.3])
    scores = [lines(sign * slopes).assign(part=name) for name, sign in (("a", 1), ("b", -1))]
    table = measure(pd.concat(scores), "raise", by=["part"])
    summary = summarise(table, by=["part"])
    surface = explained(slopes, {"words": [1, 2, 3, 5]}, n_draws=50).assign(part="a")
    moved = transfer(table.rename(columns={"part": "system"}), "system")
    said = findings(summary, surface, moved, by=["part"])
    assert said[0].startswith("a: the score goes +15.00 nats")
    assert "25% [5%, 70%] go the wrong way" in said[0]
    assert "75% [30%, 95%] go the wrong way" in said[1]
    assert "words explains" in said[2]
    assert "order is kept with ρ = -1.00" in said[3]
    drawn = figure(table, "made up", by=["part"])
    names = [trace.name for trace in drawn.data]
    assert {*names} == {"toward the goal", "the wrong way", "mean, 95 % interval"}
    assert sum(len(t.x) for t in drawn.data if t.name == "the wrong way") == 4
    assert drawn.layout.yaxis.ticktext == ("a<br>25% the wrong way", "b<br>75% the wrong way")
