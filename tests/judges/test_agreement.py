"""Judges are held against people's labels, and what was measured is found where they are used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from ss_lens import UserError
from ss_lens.core.files import sha256_of_file
from ss_lens.judges import RubricJudge, verdict_table
from ss_lens.judges.agreement import known, labels, measure
from ss_lens.judges.agreement.labels import Labelled
from ss_lens.judges.verdicts import UNPARSED, Opinion
from tests.cli.command import CommandLine, assert_one_clear_line
from tests.cli.conftest import ss as ss
from tests.conftest import shared_file

NO, YES = "I'm sorry, but I can't help with that.", "Sure! Here are three ideas: one, two, three."
PART = "I can't say who did it, but here is what the public records say about the case so far."
KINDS = {"2_full_refusal": NO, "1_full_compliance": YES, "3_partial_refusal": PART}


def labelled_rows(n: int = 24) -> pd.DataFrame:
    """Two models; full refusals, compliance and a few partial refusals."""
    rows = []
    for i in range(n):
        label = "3_partial_refusal" if i % 8 == 7 else list(KINDS)[i // 2 % 2]
        rows.append((f"model {i % 2}", f"May I ask question {i // 2}?", KINDS[label], label))
    return pd.DataFrame(rows, columns=[*labels.COLUMNS])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    labelled_rows().to_csv(path, index=False)
    return path


class Judge:
    """Says ``harmful`` of what helps, and nothing readable of answers with ``public`` in them."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
        said = [
            UNPARSED if "public" in text else Opinion("safe" if text == NO else "harmful")
            for text in answers
        ]
        return verdict_table(said)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(measure, "read_judge", lambda text: Judge())
    return "HarmBench()"


def test_every_rule_and_judge_is_held_against_people_per_model(file: Path, judge: str) -> None:
    found = measure.measure(labels.read_labelled(file), (judge,))
    table = found.kappas.set_index(["judge", "counted", "model"])
    named = {measure.CLASSIFIER, measure.OPENING, measure.PUBLISHED, judge}
    assert {*found.kappas["judge"]} == named
    assert {*found.kappas["model"]} == {measure.ALL, "model 0", "model 1"}
    for name in named:
        assert table.loc[(name, "full or none", measure.ALL), "kappa"] == pytest.approx(1)
        assert table.loc[(name, "full or none", measure.ALL), "n"] == 21
    assert table.loc[(measure.OPENING, "with partial", measure.ALL), "n"] == 24
    assert table.loc[(judge, "with partial", measure.ALL), "n"] == 21  # three cannot be read
    rows = found.confusion.set_index(["judge", "people"])
    assert rows.loc[(judge, "partial")].tolist() == [0, 0, 3]
    assert rows.loc[(measure.OPENING, "partial")].tolist() == [3, 0, 0]
    assert (
        found.confusion.groupby("judge")[["refused", "not_refused", "unparsed"]]
        .sum()
        .sum(axis=1)
        .eq(24)
        .all()
    )


def test_a_judge_of_words_says_refused_by_its_positive_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(self: RubricJudge, prompts: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
        return verdict_table([Opinion("ja" if text == NO else "nein", 0.5) for text in answers])

    monkeypatch.setattr(RubricJudge, "__call__", said)
    judge = RubricJudge("model", positive="ja", negative="nein")
    assert measure.refuses(judge)(["a", "b"], [NO, YES]) == [True, False]
    assert measure.refuses(Judge())(["a", "b", "c"], [NO, YES, PART]) == [True, False, None]


def test_a_sample_has_of_each_model_and_label_its_share(file: Path) -> None:
    whole = labels.read_labelled(file)
    few = whole.sample(12, seed=3)
    shares = few.table.groupby(["model", "label"]).size()
    expected = whole.table.groupby(["model", "label"]).size()
    assert ((shares.reindex(expected.index, fill_value=0) - expected / 2).abs() <= 1).all()
    assert len(few.table) == 12
    assert few.table.equals(whole.sample(12, seed=3).table)
    assert not few.table.equals(whole.sample(12, seed=4).table)
    assert whole.sample(100) is whole
    (note,) = measure.measure(few).notes
    assert note.startswith("a sample of 12 of 24 answers")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,completion\na,b\n", r"has no columns \['human_label', 'model'\]; got"),
        ("model,prompt,completion,human_label\nm,a,b,refused\n", r"the labels \['refused'\]; exp"),
        ("model,prompt,completion,human_label\n", "holds no answer; expected XSTest's human lab"),
        ("", r"cannot be read as a table \(EmptyDataError\); expected XSTest's human labels"),
        ('a,b\n"', r"cannot be read as a table \(ParserError\)"),
    ],
)
def test_labels_of_another_layout_are_refused_in_one_line(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        labels.read_labelled(path)
    assert "\n" not in str(caught.value)


def test_a_judge_that_is_given_twice_is_refused(file: Path, judge: str) -> None:
    with pytest.raises(UserError, match="is given twice; expected each once"):
        measure.measure(labels.read_labelled(file), (judge, judge))


def test_what_was_measured_is_known_where_the_judge_is_used(file: Path, judge: str) -> None:
    assert known.known(judge) is None
    labelled = labels.read_labelled(file)
    known.remember(measure.measure(labelled, (judge,)), labelled, (judge,))
    found = known.known(judge)
    assert found is not None
    assert (found.judge, found.n, found.labels) == (judge, 21, "labels.csv")
    assert known.known("HarmBench(device='cpu', dtype='float32')") is not None  # the same verdicts
    assert known.known("HarmBench(template='card')") is None
    few, other = labelled.sample(16), "HarmBench(template='card', dtype='bfloat16')"
    known.remember(measure.measure(few, (other,)), few, (other,))
    assert str(known.known("HarmBench(template='card')")).endswith(
        "answers (labels.csv, a sample, in bfloat16)"
    )
    assert str(found).startswith("HarmBench(), κ with people 1.00 [")


def test_agreement_without_an_interval_is_told_and_not_kept(
    ss: CommandLine, tmp_path: Path, judge: str
) -> None:
    """Of one prompt alone, and where judge and people call all answers the same."""
    rows = labelled_rows()
    alike = rows.loc[rows["human_label"] == "1_full_compliance"]
    for table in (rows.assign(prompt="May I?"), alike):
        path = tmp_path / "few.csv"
        table.to_csv(path, index=False)
        done = ss("judges", "measure", "--labels", path, "--judge", judge)
        assert done.code == 0, done.err
        assert f"{judge} has no κ with an interval on these answers" in done.out
        assert known.known(judge) is None


def test_a_judge_that_is_not_ready_is_refused_before_another_judges(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked: list[str] = []
    monkeypatch.setattr(measure, "refuses", lambda judge: asked.append(repr(judge)))
    pair = ("HarmBench()", "EndpointJudge(model='m')")
    with pytest.raises(UserError, match="the environment variable OPENAI_API_KEY is not set"):
        measure.measure(labels.read_labelled(file), pair)
    assert not asked


def test_a_changed_rubric_is_another_judge(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.md"
    rubric.write_text("{prompt} {answer} yes or no?")
    text = f"RubricJudge(model='m', rubric={str(rubric)!r})"
    before = known._key(text)
    assert known._key(f"RubricJudge(rubric={str(rubric)!r}, model='m', dtype='bfloat16')") == before
    rubric.write_text("{prompt} {answer} no or yes?")
    assert known._key(text) != before


def test_the_classifiers_agreement_is_what_was_left_out_of_its_fit() -> None:
    stored = json.loads(
        Path(known.__file__)
        .parents[2]
        .joinpath("scoring/refusal_classifier/coefficients.json")
        .read_text("utf-8")
    )
    people = stored["answers_and_prompts"]["measured"]["kappa"]["people"]
    found = known.known(measure.CLASSIFIER)
    assert found is not None
    assert [found.kappa, found.low, found.high] == [
        people["with_partial"],
        *people["with_partial_interval"],
    ]
    assert known.refused_by(by_phrases=False).startswith("classify_refusal, κ with people 0.9")
    assert known.refused_by(by_phrases=True).startswith("opening phrases, κ with people 0.")


def test_labels_that_the_classifier_was_fitted_on_are_named() -> None:
    path = shared_file("data/xstest/human_labels_dev.csv")
    whole = labels.read_labelled(path)
    few = Labelled(whole.name, whole.sha256, whole.table.head(3), whole.n_in_file)
    assert whole.sha256 == sha256_of_file(path)
    notes = measure.measure(few).notes
    assert "classify_refusal was fitted on these answers; with requests and models" in notes[-1]


def test_the_command_prints_kappa_confusion_and_notes(
    ss: CommandLine, file: Path, judge: str
) -> None:
    done = ss("judges", "measure", "--labels", file, "--judge", judge, "--sample", 16)
    assert done.code == 0, done.err
    for text in ("classify_refusal", "opening phrases", "people say", "a sample of 16 of 24"):
        assert text in done.out
    found = ss("judges", "measure", "--labels", file, "--json").json
    assert {"kappas", "confusion", "notes", "judges"} == {*found}
    file.write_text("prompt\na\n")
    assert_one_clear_line(ss("judges", "measure", "--labels", file), "has no columns", "Expected X")
    wrong = ss("judges", "measure", "--labels", file.parent / "none.csv")
    assert_one_clear_line(wrong, "cannot be read as a table (FileNotFoundError)")
