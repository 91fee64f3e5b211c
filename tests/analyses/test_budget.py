"""What is compared spends the budget that it says, at a strength that dev decides."""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import sign_flip_permutation_pvalue

import ss_lens
from analyses import budget, style
from analyses.budget import __main__ as command, choosing
from analyses.budget.answered import Answered
from analyses.budget.families import Family, paper_families
from analyses.budget.matching import TOLERANCE, Curve, Match
from ss_lens import Ablate, Add, ContrastiveDataset, RotateBy, RotateTo, Store, UserError
from ss_lens.datasets.contrastive import DatasetSplit
from ss_lens.geometry.operators import RotateScale, SetAngle
from ss_lens.scoring import refusal_score as scoring
from ss_lens.scoring.divergence import kl_divergence

OPERATORS = {kind.__name__: kind for kind in (Ablate, Add, RotateBy, RotateTo, SetAngle)}
TOKENS = 6


@pytest.fixture(autouse=True)
def openings_in_tiny_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REFUSAL_OPENINGS", ("w20", "w21"))
    monkeypatch.setattr(scoring, "COMPLIANCE_OPENINGS", ("w30", "w31", "w21"))


@pytest.fixture
def parts(tiny_data: ContrastiveDataset) -> DatasetSplit:
    return tiny_data.split(dev=3, test=3, seed=0)


@pytest.fixture
def families(tiny_llama: TransformerBridge, parts: DatasetSplit, store: Store) -> dict[str, Family]:
    acts = ss_lens.capture(tiny_llama, parts.train, store=store)
    everywhere = ss_lens.calibrate(acts, rule="uniform")
    return {
        "rotate_by": Family(everywhere, RotateBy, range(0, 181, 30)),
        "fewer sites": Family(ss_lens.calibrate(acts), RotateBy, range(0, 181, 30)),
        "rotate_to": Family(everywhere, RotateTo, range(0, 361, 45)),
        "add": Family(everywhere, Add, [0, -0.25, -1, -4]),
        "ablate": Family(everywhere, Ablate()),
    }


def compared(
    model: TransformerBridge,
    families: dict[str, Family],
    parts: DatasetSplit,
    budgets: Sequence[float],
) -> pd.DataFrame:
    return budget.measure(model, families, parts.dev, parts.test, budgets, max_new_tokens=TOKENS)


def kl_by_hand(
    model: TransformerBridge, family: Family, operator: object, data: ContrastiveDataset
) -> np.ndarray:
    """Per prompt, one prompt at a time."""
    values = []
    for prompt in (*data.positive, *data.negative):
        answer = ss_lens.generate(model, [prompt], max_new_tokens=TOKENS)
        table = kl_divergence(model, family.calibration, operator, [prompt], answer)
        values.append(float(table["kl_mean"].iloc[0]))
    return np.array(values)


def test_what_is_reported_spends_the_budget_on_dev_and_is_measured_on_test(
    tiny_llama: TransformerBridge, families: dict[str, Family], parts: DatasetSplit
) -> None:
    table = compared(tiny_llama, families, parts, [0.5])
    assert table["family"].tolist() == [name for name in families for _ in range(2)]
    by_hand = {}
    for row in table.itertuples():
        family, operator = families[row.family], eval(row.operator, OPERATORS)
        on_dev = kl_by_hand(tiny_llama, family, operator, parts.dev).mean()
        assert row.dev_kl == pytest.approx(on_dev, rel=1e-3)
        if row.family == "ablate":
            assert math.isnan(row.strength)
            assert row.problem == choosing.FIXED
        else:
            assert on_dev == pytest.approx(0.5, rel=TOLERANCE + 1e-3)
            assert row.problem == ""
        on_test = kl_by_hand(tiny_llama, family, operator, parts.test)
        half = slice(0, 3) if row.prompt_class == "positive" else slice(3, 6)
        assert row.kl == pytest.approx(on_test.mean(), rel=1e-3)
        assert row.class_kl == pytest.approx(on_test[half].mean(), rel=1e-3)
        assert row.kl_low <= row.kl <= row.kl_high
        prompts = getattr(parts.test, row.prompt_class)
        plain = scoring.refusal_score(tiny_llama, prompts)["refusal_score"]
        assert row.unsteered == pytest.approx(plain.mean(), abs=1e-3)
        with ss_lens.steer(tiny_llama, family.calibration, operator):
            scores = scoring.refusal_score(tiny_llama, prompts)
        by_hand[row.family, row.prompt_class] = scores["refusal_score"].to_numpy()
        assert row.refusal_score == pytest.approx(scores["refusal_score"].mean(), abs=1e-3)
        assert row.opening_mass == pytest.approx(scores["opening_mass"].mean(), rel=1e-3)
        assert row.low <= row.refusal_score <= row.high
        assert row.n == 3
    for row in table.itertuples():
        pairs = by_hand[row.family, row.prompt_class] - by_hand["rotate_by", row.prompt_class]
        if row.family in ("rotate_by", "ablate"):  # the reference, and what is not at the budget
            assert math.isnan(row.difference)
            assert math.isnan(row.p_holm)
            continue
        assert row.difference == pytest.approx(pairs.mean(), abs=1e-3)
        assert row.difference_low <= row.difference <= row.difference_high
        # Three pairs have eight patterns of signs, so the test is exact.
        expected = sign_flip_permutation_pvalue(torch.from_numpy(pairs))
        assert row.p_value == pytest.approx(float(expected))


def test_the_comparison_repeats_and_does_not_depend_on_the_order_of_families(
    tiny_llama: TransformerBridge, families: dict[str, Family], parts: DatasetSplit
) -> None:
    table = compared(tiny_llama, families, parts, [0.1, 0.5])
    pd.testing.assert_frame_equal(compared(tiny_llama, families, parts, [0.1, 0.5]), table)
    first, *others = families.items()
    turned = compared(tiny_llama, dict([first, *others[::-1]]), parts, [0.5, 0.1])
    keys = ["budget", "family", "prompt_class"]
    table = table.set_index(keys)
    pd.testing.assert_frame_equal(turned.set_index(keys).loc[table.index], table)
    another = compared(tiny_llama, dict([*others, first]), parts, [0.1, 0.5])
    of_pairs = [name for name in table if name.startswith(("difference", "p_"))]
    pd.testing.assert_frame_equal(
        another.set_index(keys).loc[table.index].drop(columns=of_pairs),
        table.drop(columns=of_pairs),
    )


@pytest.mark.parametrize(("goal", "best"), [("weaken", min), ("strengthen", max)])
def test_of_both_senses_dev_takes_the_better(
    tiny_llama: TransformerBridge,
    families: dict[str, Family],
    parts: DatasetSplit,
    goal: choosing.Goal,
    best: Callable[..., float],
) -> None:
    where = families["rotate_by"].calibration
    around = Family(where, RotateBy, range(0, 361, 15), circle=True)
    named = {"around": around, "half": families["rotate_by"], "add": families["add"]}
    table = budget.measure(
        tiny_llama, named, parts.dev, parts.test, [0.5], goal=goal, max_new_tokens=TOKENS
    ).set_index("family")
    row = table.loc["around"].iloc[0]
    told = row["candidates"].replace("−", "-").split("; ")
    pairs = [tuple(map(float, text.replace("°", "").split())) for text in told]
    assert len(pairs) >= 2
    assert {angle > 0 for angle, _ in pairs} == {True, False}
    scores = []
    for angle, said in pairs:
        operator = RotateBy(angle % 360)
        spent = kl_by_hand(tiny_llama, around, operator, parts.dev).mean()
        assert spent == pytest.approx(0.5, rel=0.03)
        with ss_lens.steer(tiny_llama, where, operator):
            scores.append(scoring.refusal_score(tiny_llama, parts.dev.positive).iloc[:, 0].mean())
        assert said == pytest.approx(scores[-1], abs=0.02)
    angle = pairs[scores.index(best(scores))][0]
    assert row["strength"] == pytest.approx(angle % 360, abs=0.1)
    assert row["sense"] == ("+" if angle > 0 else "−")
    assert (table.loc[["half", "add"], ["sense", "candidates"]] == "").all(axis=None)


def test_a_circle_is_a_whole_one(families: dict[str, Family]) -> None:
    calibration = families["rotate_by"].calibration
    for angles in (range(0, 181, 30), range(0, 360, 30)):
        with pytest.raises(UserError, match=r"from its start to 360° further; got .*whole circle"):
            Family(calibration, RotateBy, angles, circle=True)
    assert Family(calibration, RotateBy, range(-180, 181, 30), circle=True).circle


def test_strengths_see_dev_alone_and_reports_test_alone(
    tiny_llama: TransformerBridge, families: dict[str, Family], parts: DatasetSplit
) -> None:
    table = compared(tiny_llama, families, parts, [0.5])
    chosen = ["family", "strength", "operator", "dev_kl", "problem"]
    other_test = replace(parts.test, positive=("w10 w11", "w12 w9"), negative=("w70 w71", "w99"))
    moved = budget.measure(
        tiny_llama, families, parts.dev, other_test, [0.5], max_new_tokens=TOKENS
    )
    pd.testing.assert_frame_equal(moved[chosen], table[chosen])
    assert (moved["kl"] != table["kl"]).all()
    # A fixed operator's report has nothing that dev could move.
    other_dev = replace(parts.dev, positive=("w10 w11", "w12 w9"), negative=("w70 w71", "w99"))
    fixed = {"ablate": families["ablate"]}
    reports = [
        budget.measure(tiny_llama, fixed, dev, parts.test, [0.5], max_new_tokens=TOKENS)
        for dev in (parts.dev, other_dev)
    ]
    assert reports[0]["dev_kl"].iloc[0] != reports[1]["dev_kl"].iloc[0]
    pd.testing.assert_frame_equal(*(report.drop(columns="dev_kl") for report in reports))


def test_test_prompts_are_first_read_when_all_strengths_are_chosen(
    tiny_llama: TransformerBridge,
    families: dict[str, Family],
    parts: DatasetSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[tuple[str, ...]] = []
    first_match, by = Curve.first_match, Answered.by

    def recorded_match(self: Curve, *args: float) -> Match:
        read.append(("match",))
        return first_match(self, *args)

    def recorded_by(model: TransformerBridge, data: ContrastiveDataset, tokens: int) -> Answered:
        read.append((*data.positive, *data.negative))
        return by(model, data, tokens)

    monkeypatch.setattr(Curve, "first_match", recorded_match)
    monkeypatch.setattr(Answered, "by", recorded_by)
    compared(tiny_llama, families, parts, [0.5])
    dev, test = ((*part.positive, *part.negative) for part in (parts.dev, parts.test))
    assert read == [dev, *[("match",)] * 4, test]


def test_a_family_that_does_not_reach_the_budget_keeps_its_rows(
    tiny_llama: TransformerBridge, families: dict[str, Family], parts: DatasetSplit
) -> None:
    families = {name: families[name] for name in ("rotate_to", "rotate_by", "add", "ablate")}
    table = compared(tiny_llama, families, parts, [0.2, 0.9])
    assert len(table) == 2 * 4 * 2
    rows = table.set_index(["budget", "family"])
    low = rows.loc[(0.2, "rotate_to")]
    assert low["problem"].str.match("KL is at least 0.4.* above the budget of 0.2").all()
    high = rows.loc[(0.9, "rotate_by")]
    assert high["problem"].str.match("KL is at most 0.7.* below the budget of 0.9").all()
    for missing in (low, high):
        numbers = missing[["strength", "dev_kl", "kl", "class_kl", "refusal_score", "difference"]]
        assert numbers.isna().all(axis=None)
        assert (missing["operator"] == "").all()
        assert missing["unsteered"].notna().all()
    assert (rows.loc[(0.9, "add")]["problem"] == "").all()
    # Nobody is compared with a reference that is not there.
    assert rows["difference"].isna().all()
    assert rows.loc[(0.2, "rotate_by")]["refusal_score"].notna().all()
    ablated = table.query("family == 'ablate'").set_index("budget")
    pd.testing.assert_frame_equal(
        ablated.loc[0.2].reset_index(drop=True), ablated.loc[0.9].reset_index(drop=True)
    )


def test_strengths_that_are_no_angles_are_measured_one_by_one(
    tiny_llama: TransformerBridge, families: dict[str, Family], parts: DatasetSplit
) -> None:
    """Also those of an operator that has an angle beside them."""
    calibration = families["rotate_by"].calibration
    texts = Answered.by(tiny_llama, parts.dev, TOKENS)
    scaled = Family(calibration, lambda s: RotateScale(angle_deg=90, scale=s), [1, 2, 90])
    turned = Family(calibration, lambda s: RotateScale(angle_deg=s, scale=2), [1, 2, 90])
    for family in (scaled, turned):
        expected = [
            kl_by_hand(tiny_llama, family, family.at(s), parts.dev).mean() for s in family.strengths
        ]
        got = texts.mean_kl(family, family.strengths)
        np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_prompts_without_an_answer_do_not_count_and_none_is_an_error(
    tiny_llama: TransformerBridge, families: dict[str, Family]
) -> None:
    texts = Answered(tiny_llama, ("positive", "negative"), ("w9", "w10 w11"), ("", "w20 w21 w22"))
    kept = texts.without_empty()
    assert (kept.classes, kept.prompts) == (("negative",), ("w10 w11",))
    assert np.isnan(texts.mean_kl(families["ablate"], [0.0])).all()
    assert np.isfinite(kept.mean_kl(families["ablate"], [0.0])).all()
    with pytest.raises(UserError, match=r"an empty answer to all 2 prompts, .* use other prompts"):
        replace(texts, responses=("", "")).without_empty()


def test_bad_input_is_told_before_any_work(
    tiny_models: dict[str, TransformerBridge],
    families: dict[str, Family],
    parts: DatasetSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Answered, "by", None)
    model, dev, test = tiny_models["llama"], parts.dev, parts.test
    for wrong in (0, -0.5, math.inf, math.nan):
        with pytest.raises(UserError, match=r"budgets must be positive, finite .*; got .*Give one"):
            budget.measure(model, families, dev, test, [0.5, wrong])
    with pytest.raises(UserError, match=r"got \[\]"):
        budget.measure(model, families, dev, test, [])
    with pytest.raises(UserError, match=r"a budget is given twice, in .*keep one"):
        budget.measure(model, families, dev, test, [0.5, 0.5])
    with pytest.raises(UserError, match="no family of operators to compare; give at least one"):
        budget.measure(model, {}, dev, test)
    with pytest.raises(UserError, match=r"family 'rotate_by': the calibration .*Calibrate again"):
        budget.measure(tiny_models["gpt2"], families, dev, test)
    with pytest.raises(UserError, match=r"is in dev and in test, .*give disjoint parts"):
        budget.measure(model, families, dev, dev)
    monkeypatch.setattr(scoring, "REFUSAL_OPENINGS", scoring.COMPLIANCE_OPENINGS)
    with pytest.raises(UserError, match="does not tell refusal openings"):
        budget.measure(model, families, dev, test)
    with pytest.raises(UserError, match=r"budgets must be positive, .*got \[-1.0\]"):
        command.main(budget=[-1.0])
    with pytest.raises(UserError, match="--dev must be 1 to 16 prompts per class; got 17"):
        command.main(dev=17)


def test_a_model_with_hooks_is_an_error(
    tiny_llama: TransformerBridge, families: dict[str, Family], parts: DatasetSplit
) -> None:
    with (
        ss_lens.steer(tiny_llama, families["add"].calibration, Ablate()),
        pytest.raises(UserError, match="no unsteered model to measure the divergence from"),
    ):
        compared(tiny_llama, families, parts, [0.5])


def test_a_family_has_an_operator_or_a_function_and_ordered_strengths(
    families: dict[str, Family],
) -> None:
    calibration = families["rotate_by"].calibration
    for operator, strengths in ((Ablate(), [0, 1]), (RotateBy, []), (RotateBy(30), [0, 1])):
        with pytest.raises(UserError, match="an operator and no strengths, or a function"):
            Family(calibration, operator, strengths)
    for strengths in ([1], [0, 1, 1], [0, 2, 1], [0, math.inf], [0, math.nan]):
        with pytest.raises(UserError, match="two or more finite numbers that rise or fall"):
            Family(calibration, RotateBy, strengths)


def test_the_papers_families_start_where_nothing_is_steered_and_have_signed_shifts(
    tiny_llama: TransformerBridge, parts: DatasetSplit, store: Store
) -> None:
    acts = ss_lens.capture(tiny_llama, parts.train, store=store)
    made = paper_families(acts, step=40)
    assert next(iter(made)) == "rotate_by, discriminative sites"
    around = (0, 40, 80, 120, 160, 200, 240, 280, 320, 360)
    assert made["rotate_by, all sites"].strengths == around
    assert {name for name, family in made.items() if family.circle} == {
        name for name in made if name.startswith(("rotate", "set_angle"))
    }
    assert len(made["rotate_by, all sites"].calibration.selected_sites) == 6
    assert made["rotate_to, discriminative sites"].strengths[-1] == 360
    up, down = (made[f"add, {way} the direction"] for way in ("along", "against"))
    assert down.strengths == tuple(-strength for strength in up.strengths)
    assert up.strengths[0] == 0
    assert up.at(up.strengths[-1]) == Add(up.strengths[-1])
    sites = up.calibration.selected_sites
    along = [np.abs(np.vstack(acts.at(s)) @ up.calibration.plane.b1.numpy()) for s in sites]
    assert up.strengths[-1] == pytest.approx(8 * np.mean(along), rel=1e-5)
    assert made["ablate, discriminative sites"].is_fixed
    for step in (0, 91):
        with pytest.raises(UserError, match=f"a step of 1 to 90 degrees; got {step}"):
            paper_families(acts, step)


def made_table() -> pd.DataFrame:
    rows = []
    for level in (0.5, 0.1):
        for name, at_budget in (("a", True), ("gone", False), ("fixed", None)):
            kl = {True: 1.1 * level, False: math.nan, None: 0.7}[at_budget]
            for label, shift in (("positive", 1.0), ("negative", -1.0)):
                score = shift + (level if at_budget else 0.3) if at_budget is not False else kl
                rows.append(
                    {
                        "budget": level, "family": name, "prompt_class": label,
                        "strength": 3.0 if at_budget else math.nan, "operator": f"{name}()",
                        "kl": kl, "kl_low": 0.9 * kl, "kl_high": 1.3 * kl,
                        "refusal_score": score, "low": score - 0.2, "high": score + 0.3,
                        "opening_mass": 0.4 if level == 0.1 else 0.9, "unsteered": 2 * shift,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_figure_shows_each_familys_scores_with_intervals_against_the_divergence() -> None:
    table = made_table()
    drawn = budget.figure(table, "here")
    assert "here" in drawn.layout.title.text
    assert (drawn.layout.xaxis.type, drawn.layout.xaxis2.type) == ("log", "log")
    assert [a.text for a in drawn.layout.annotations] == ["positive prompts", "negative prompts"]
    traces = [trace for trace in drawn.data if trace.meta != style.EXPLAINS]
    positive = {trace.legendgroup: trace for trace in traces if trace.xaxis == "x"}
    assert [*positive] == ["a", "gone", "fixed"]
    a = positive["a"]
    np.testing.assert_allclose(a.x, [0.11, 0.55])
    np.testing.assert_allclose(a.y, [1.1, 1.5])
    np.testing.assert_allclose(a.error_y.array, 0.3)
    np.testing.assert_allclose(a.error_y.arrayminus, 0.2)
    np.testing.assert_allclose(a.error_x.array, [0.033, 0.165])
    crossed = [t for t in drawn.data if t.legendgroup == style.Crosses.text]
    assert [t.x[0] for t in crossed] == pytest.approx([0.11, 0.11])
    assert [t.xaxis for t in crossed] == ["x", "x2"]
    assert [t.showlegend for t in crossed] == [True, False]
    assert positive["gone"].name == "gone (not reached)"
    assert positive["gone"].y == (None,)
    assert positive["gone"].showlegend
    assert len(positive["fixed"].y) == 1
    assert len({trace.marker.symbol for trace in positive.values()}) == 3
    assert len({trace.line.color for trace in positive.values()}) == 3
    negative = [trace for trace in traces if trace.xaxis == "x2"]
    assert not any(trace.showlegend for trace in negative)
    assert [trace.line.color for trace in negative] == [t.line.color for t in positive.values()]
    levels = {(s.yref, s.y0) for s in drawn.layout.shapes if s.y0 == s.y1}
    assert levels == {("y", 2.0), ("y2", -2.0)}
    budgets = {(s.xref, s.x0) for s in drawn.layout.shapes if s.x0 == s.x1}
    assert budgets == {("x", 0.5), ("x", 0.1), ("x2", 0.5), ("x2", 0.1)}


def test_the_figure_writes_nothing_and_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a figure opens no file")

    module = sys.modules[budget.figure.__module__]
    assert not {"torch", "ss_lens"} & {*vars(module)}
    table = made_table()
    before = table.copy()
    monkeypatch.setattr(builtins, "open", forbidden)
    monkeypatch.setattr("io.open", forbidden)
    budget.figure(table)
    monkeypatch.undo()
    pd.testing.assert_frame_equal(table, before)
