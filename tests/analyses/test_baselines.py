"""Baselines are measured as steering is: each by hand on a tiny model, chosen on dev alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses import baselines
from analyses.baselines import __main__ as command, choosing, figures, ways as ways_module
from analyses.baselines.candidates import Candidate, Way
from analyses.baselines.lora import Training, train
from analyses.baselines.subject import Subject
from analyses.baselines.ways import ANSWERING, REFUSING, ROTATING, UNSTEERED, examples
from analyses.budget.answered import Answered
from analyses.budget.choosing import Goal
from ss_lens import Behaviour, ChatFormat, ContrastiveDataset, RotateBy, Store, UserError
from ss_lens.behaviours.readers import Phrases, RatedColumn
from ss_lens.datasets.contrastive import DatasetSplit
from ss_lens.scoring import refusal_score as scoring
from ss_lens.scoring.behaviours.openings import Openings

TOKENS = 4
FEW = Training(rank=2, steps=6, batch=2, lr=0.02, kept_prompts=3, kept_tokens=3)


@pytest.fixture(autouse=True)
def openings_in_tiny_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REFUSAL_OPENINGS", ("w20", "w21"))
    monkeypatch.setattr(scoring, "COMPLIANCE_OPENINGS", ("w30", "w31", "w21"))
    monkeypatch.setattr(ways_module, "SHOTS", (1, 2))  # the tiny context holds no more


@pytest.fixture
def parts(tiny_data: ContrastiveDataset) -> DatasetSplit:
    return tiny_data.split(dev=3, test=3, seed=0)


def refusal(goal: Goal = "weaken") -> Subject:
    """Of whichever prompts, with the openings of these tests."""
    data = ContrastiveDataset("d", ("w8", "w9"), ("w10", "w11"))
    openings = scoring.refusal_openings()
    return Subject(Behaviour("refusal", data, openings, RatedColumn("refused")), goal)


@pytest.fixture
def made(tiny_llama: TransformerBridge, parts: DatasetSplit, store: Store) -> dict[str, Way]:
    acts = ss_lens.capture(tiny_llama, parts.train, store=store)
    return baselines.all_ways(
        tiny_llama, parts.train, acts, refusal(), systems=("w40 w41", "w50"), training=FEW, step=90
    )


def mean_score(model: TransformerBridge, prompts: tuple[str, ...]) -> float:
    return float(scoring.refusal_score(model, prompts)["refusal_score"].mean())


def test_training_moves_the_score_as_wanted_and_leaves_the_model_as_it_was(
    tiny_llama: TransformerBridge, parts: DatasetSplit
) -> None:
    positive = parts.train.positive
    before = mean_score(tiny_llama, positive)
    weights = {name: w.clone() for name, w in tiny_llama.original_model.named_parameters()}
    for goal, sign in (("weaken", -1), ("strengthen", 1)):
        adapter = train(tiny_llama, refusal(goal), parts.train, FEW)
        with adapter.at(1.0):
            moved = mean_score(tiny_llama, positive) - before
        assert sign * moved > 0.1
        with adapter.at(2.0):
            assert sign * (mean_score(tiny_llama, positive) - before) > sign * moved
        with adapter.at(0.0):
            assert mean_score(tiny_llama, positive) == before
        assert mean_score(tiny_llama, positive) == before
        again = train(tiny_llama, refusal(goal), parts.train, FEW)
        for name, factors in adapter.factors.items():
            for first, second in zip(factors, again.factors[name], strict=True):
                torch.testing.assert_close(first, second)
    for name, weight in tiny_llama.original_model.named_parameters():
        assert torch.equal(weight, weights[name])
        assert weight.grad is None


def test_an_adapter_is_the_model_with_merged_weights(
    tiny_llama: TransformerBridge, parts: DatasetSplit
) -> None:
    adapter = train(tiny_llama, refusal(), parts.train, FEW)
    with adapter.at(0.7):
        expected = scoring.refusal_score(tiny_llama, parts.test.positive)
        texts = ss_lens.generate(tiny_llama, parts.test.positive, max_new_tokens=TOKENS)
    modules = dict(tiny_llama.original_model.named_modules())
    for name, (a, b) in adapter.factors.items():
        modules[name].weight.data += 0.7 * b @ a
    try:
        merged = scoring.refusal_score(tiny_llama, parts.test.positive)
        again = ss_lens.generate(tiny_llama, parts.test.positive, max_new_tokens=TOKENS)
    finally:
        for name, (a, b) in adapter.factors.items():
            modules[name].weight.data -= 0.7 * b @ a
    pd.testing.assert_frame_equal(merged, expected, atol=1e-3)
    assert again == texts


def test_an_adapter_is_removed_also_when_the_body_raises(
    tiny_llama: TransformerBridge, parts: DatasetSplit
) -> None:
    adapter = train(tiny_llama, refusal(), parts.train, FEW)
    with pytest.raises(RuntimeError, match="in the middle"), adapter.at(1.0):
        raise RuntimeError("in the middle")
    linear = [m for m in tiny_llama.original_model.modules() if isinstance(m, nn.Linear)]
    assert not any(module._forward_hooks for module in linear)


def test_a_model_with_hooks_or_without_the_maps_is_one_line(
    tiny_llama: TransformerBridge, parts: DatasetSplit, store: Store
) -> None:
    with pytest.raises(UserError, match=r"has no linear maps called none, .*name those of this"):
        train(tiny_llama, refusal(), parts.train, Training(targets=("none",)))
    calibration = ss_lens.calibrate(ss_lens.capture(tiny_llama, parts.train, store=store))
    with (
        ss_lens.steer(tiny_llama, calibration, RotateBy(90)),
        pytest.raises(UserError, match=r"the adapter would be trained on top of them"),
    ):
        train(tiny_llama, refusal(), parts.train, FEW)


def test_examples_are_of_both_classes_and_answer_as_is_wanted(
    tiny_llama: TransformerBridge, parts: DatasetSplit
) -> None:
    turns = examples(tiny_llama, parts.train, refusal("strengthen"), 4)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4
    asked = [turn["content"] for turn in turns[::2]]
    p, n = parts.train.positive, parts.train.negative
    assert asked == [p[0], n[0], p[1], n[1]]
    assert [turn["content"] for turn in turns[1::2]] == [REFUSING, ANSWERING] * 2
    weaker = examples(tiny_llama, parts.train, refusal(), 4)
    assert {turn["content"] for turn in weaker[1::2]} == {ANSWERING}


def test_examples_of_another_behaviour_are_the_models_own_answers(
    tiny_llama: TransformerBridge, parts: DatasetSplit
) -> None:
    """Answers to the other class, after their partners where prompts have them."""
    openings = Openings(("w20", "w21"), ("w30", "w31"))
    for paired in (False, True):
        data = ContrastiveDataset("d", ("w8", "w9"), ("w60", "w61"), paired=paired)
        subject = Subject(Behaviour("other", data, openings), "weaken")
        turns = examples(tiny_llama, data, subject, 2)
        own = ss_lens.generate(tiny_llama, data.negative, max_new_tokens=24)
        assert [turn["content"] for turn in turns[1::2]] == own
        asked = data.positive if paired else data.negative
        assert [turn["content"] for turn in turns[::2]] == [*asked]


def test_another_behaviour_is_moved_on_its_own_class_and_read_by_its_own_reader(
    tiny_llama: TransformerBridge, parts: DatasetSplit, store: Store
) -> None:
    """Strengthened where it is not; without a reader it is shown where its score is above 0."""
    data = ContrastiveDataset("d", ("w8", "w9"), ("w60", "w61"))
    openings = Openings(("w20", "w21"), ("w30", "w31"))
    by_score = Subject(
        Behaviour("other", data, openings, asking={"strengthened": ("w40",)}), "strengthen"
    )
    assert (by_score.label, by_score.other, by_score.sign) == ("negative", "positive", -1)
    assert by_score.asking == ("w40",)
    words = Subject(Behaviour("other", data, openings, Phrases(("w33",), ("w34",))), "strengthen")
    texts = ["w33 w33", "w34 w34"]
    shown = words.texts(["w8", "w9"], texts, pd.Series([0.0, 0.0]))["shown"]
    assert [*map(bool, shown)] == [True, False]
    assert pd.api.types.is_bool_dtype(shown.infer_objects())  # so that their share is a rate
    told = by_score.texts(["w8", "w9"], texts, pd.Series([1.0, -1.0]))
    assert told["shown"].tolist() == [True, False]
    scores = by_score.scores(tiny_llama, parts.dev.negative, ChatFormat())
    assert [*scores] == ["score", "opening_mass"]
    adapter = train(tiny_llama, by_score, parts.train, FEW)
    with adapter.at(1.0):
        after = by_score.scores(tiny_llama, parts.train.negative, ChatFormat())["score"].mean()
    assert after > by_score.scores(tiny_llama, parts.train.negative, ChatFormat())["score"].mean()
    acts = ss_lens.capture(tiny_llama, parts.train, store=store)
    silent = Subject(Behaviour("other", data, openings))
    with pytest.raises(UserError, match=r"has no system prompt that asks .* weakened, .*--system"):
        baselines.all_ways(tiny_llama, parts.train, acts, silent)
    with pytest.raises(UserError, match=r"'other' has no openings, .*give it openings"):
        Subject(Behaviour("other", data, shown=Phrases(("w33",), ("w34",))))


def test_everything_is_made_of_the_training_part(made: dict[str, Way], parts: DatasetSplit) -> None:
    held_out = {
        *parts.dev.positive,
        *parts.dev.negative,
        *parts.test.positive,
        *parts.test.negative,
    }
    shown = {t["content"] for one in made["showing"].settings for t in one.shots}
    assert shown & {*parts.train.positive}
    assert not shown & held_out
    assert [*made] == [
        *(UNSTEERED, "asking", "showing", "training", "adding", "ablating", ROTATING),
        "rotating to",
    ]
    assert [*made[ROTATING].candidates] == [90, 180, 270]
    assert 0 not in made["training"].candidates
    assert made["training"].preparation_s > 0


def test_each_way_is_reported_on_test_as_by_hand(
    tiny_llama: TransformerBridge,
    made: dict[str, Way],
    parts: DatasetSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choosing, "_stays_text", lambda *_: True)  # random text mostly collapses
    table = baselines.measure(
        tiny_llama, made, parts.dev, parts.test, refusal(), max_new_tokens=TOKENS
    )
    assert {*table["variant"]} == {*made}
    rows = figures.wide(table).set_index(["variant", "prompt_class"])
    asked = rows.loc[("asking", "positive")]
    chat = ChatFormat(system=asked["setting"])
    assert asked["setting"] in ("w40 w41", "w50")
    by_hand = scoring.refusal_score(tiny_llama, parts.test.positive, chat=chat)
    assert asked["refusal_score"] == pytest.approx(by_hand["refusal_score"].mean(), abs=1e-3)
    dev_scores = {
        text: scoring.refusal_score(tiny_llama, parts.dev.positive, chat=ChatFormat(system=text))[
            "refusal_score"
        ].mean()
        for text in ("w40 w41", "w50")
    }
    assert asked["setting"] == min(dev_scores, key=lambda text: dev_scores[text])
    assert asked["dev_score"] == pytest.approx(min(dev_scores.values()), abs=1e-3)
    plain = mean_score(tiny_llama, parts.test.positive)
    still = rows.loc[(UNSTEERED, "positive")]
    assert still["refusal_score"] == pytest.approx(plain, abs=1e-3)
    assert still["kl"] == pytest.approx(0, abs=1e-6)
    for way in made:
        for label in ("positive", "negative"):
            row = rows.loc[(way, label)]
            assert row["n"] == 3
            assert row["refusal_score_low"] <= row["refusal_score"] <= row["refusal_score_high"]
            assert 0 <= row["refused"] <= 1
            assert row["seconds_per_answer"] > 0
            assert math.isnan(row["kl_difference"]) == (way == ROTATING)
    shown = rows.loc[("showing", "positive")]
    assert shown["prompt_tokens"] > asked["prompt_tokens"] > still["prompt_tokens"]


def test_strengths_of_dials_spend_the_budget_and_others_say_so(
    tiny_llama: TransformerBridge, made: dict[str, Way], parts: DatasetSplit
) -> None:
    dev = Answered.by(tiny_llama, parts.dev, TOKENS)
    found = choosing.choose(tiny_llama, made, dev, refusal(), 0.08, TOKENS)
    for way in ("training", "adding", ROTATING):
        assert found[way].note == ""
        assert found[way].kl == pytest.approx(0.08, rel=0.03)
    for way in (UNSTEERED, "asking", "showing", "ablating"):
        assert found[way].note == choosing.OWN_KL
    far = choosing.choose(tiny_llama, {"adding": made["adding"]}, dev, refusal(), 1e4, TOKENS)
    assert "below the budget" in far["adding"].note


def test_a_setting_whose_answers_collapse_is_passed_over(
    tiny_llama: TransformerBridge, parts: DatasetSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = Answered.by(tiny_llama, parts.dev, TOKENS)
    settings = [Candidate(text, chat=ChatFormat(system=text)) for text in ("w40", "w41", "w42")]
    scores = [
        float(one.scores(tiny_llama, refusal(), parts.dev.positive)["score"].mean())
        for one in settings
    ]
    order = [settings[place].setting for place in np.argsort(scores)]
    tried: list[str] = []

    def stays(_: Answered, of: Subject, candidate: Candidate, tokens: int) -> bool:
        tried.append(candidate.setting)
        return candidate.setting == order[1]

    monkeypatch.setattr(choosing, "_stays_text", stays)
    way = {"asking": Way(tuple(settings))}
    found = choosing.choose(tiny_llama, way, dev, refusal(), None, TOKENS)["asking"]
    assert (found.candidate.setting, found.admissible) == (order[1], True)
    assert tried == order[:2]
    monkeypatch.setattr(choosing, "_stays_text", lambda *_: False)
    found = choosing.choose(tiny_llama, way, dev, refusal(), None, TOKENS)["asking"]
    assert (found.candidate.setting, found.admissible) == (order[0], False)


def table_of(**changes: float) -> pd.DataFrame:
    """A made-up table of three ways."""
    rows = []
    for place, way in enumerate((UNSTEERED, "asking", ROTATING)):
        for label in ("positive", "negative"):
            for metric in ("refusal_score", "opening_mass", "refused", "collapsed", "kl"):
                value = changes.get(f"{way}|{metric}", 0.1 * (1 + place))
                row = {"variant": way, "prompt_class": label, "metric": metric, "n": 24}
                row |= {"mean": value, "low": value - 0.05, "high": value + 0.05, "p_holm": 0.01}
                row |= {"difference": 0.1, "setting": way, "admissible": way != "asking"}
                row |= {"seconds_per_answer": 0.5, "prompt_tokens": 30.0, "note": ""}
                rows.append(row)
    return pd.DataFrame(rows)


def test_the_figure_and_the_short_table_show_every_way() -> None:
    drawn = figures.figure(table_of(**{"asking|opening_mass": 0.2}), "of nothing")
    named = [trace.name for trace in drawn.data if trace.showlegend]
    assert {"asking", ROTATING, "open: text collapses", "opening mass below 0.5"} <= {*named}
    short = figures.brief(table_of())
    assert short["way"].tolist() == [UNSTEERED, "asking †", ROTATING]
    assert short["score, harmful (nats)"].iloc[1] == "+0.20 [+0.15, +0.25]*"


def test_bad_input_is_told_before_any_work(
    tiny_llama: TransformerBridge, parts: DatasetSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answered, "by", None)
    ways = {UNSTEERED: Way((Candidate("as it is"),)), ROTATING: Way((Candidate("90°"),))}
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(
            UserError, match=r"budget must be a positive, finite .*; got .*Give 0.3"
        ):
            baselines.measure(tiny_llama, ways, parts.dev, parts.test, refusal(), budget=wrong)
    with pytest.raises(UserError, match=r"the ways lack 'rotating', .*baselines.all_ways"):
        baselines.measure(
            tiny_llama, {UNSTEERED: ways[UNSTEERED]}, parts.dev, parts.test, refusal()
        )
    with pytest.raises(UserError, match=r"is in dev and in test, .*give disjoint parts"):
        baselines.measure(tiny_llama, ways, parts.dev, parts.dev, refusal())
    for settings, dial in (((), {}), ((Candidate("a"),), {"at": Candidate, "strengths": (0, 1)})):
        with pytest.raises(UserError, match="a way has settings, or a function of the strength"):
            Way(settings, **dial)
    with pytest.raises(UserError, match=r"--dev must be 1 to 16 prompts per class; got 17"):
        command.main(dev=17)
    with pytest.raises(UserError, match=r"budget must be a positive"):
        command.main(budget=-1.0)


def test_the_command_writes_table_and_figure(
    tiny_folders: dict[str, Path], prompts_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tiny = replace(refusal().behaviour, dataset=ss_lens.load_dataset(prompts_file))
    monkeypatch.setattr(command, "_behaviour", lambda *_: tiny)
    command.main(
        str(tiny_folders["llama"]), dataset=str(prompts_file), dev=2, test=2, steps=2, step=90,
        system=["w40"], max_new_tokens=TOKENS, out=tmp_path / "out",
    )  # fmt: skip
    found = pd.read_csv(tmp_path / "out" / "baselines.csv")
    assert {*found["variant"]} >= {"asking", "showing", "training", "adding", "ablating", ROTATING}
    assert (tmp_path / "out" / "baselines.html").stat().st_size > 100_000
    told = capsys.readouterr().out
    assert "| training" in told
    assert "differs from rotating" in told
