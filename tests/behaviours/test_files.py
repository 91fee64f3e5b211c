"""A behaviour's file is read as it is meant, and a mistake in it is one clear line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import ss_lens
from ss_lens import ContrastiveDataset, UserError
from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import BEHAVIOURS
from ss_lens.behaviours.questions import KEYS
from ss_lens.behaviours.readers import Function, JudgedBy, Pattern, Phrases, RatedColumn
from ss_lens.judges import RubricJudge, read_judge
from ss_lens.judges.rubric import OF_WORDS, read_rubric
from ss_lens.scoring.behaviours.openings import Choices, Openings
from ss_lens.scoring.behaviours.shown import shown_of_some, shown_table
from ss_lens.scoring.refusal_score import refusal_openings

PROMPTS = "positive: [Ahoy there, Yo ho ho]\nnegative: [Good day, How are you]\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "pirate.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_embedded_behaviours_have_prompts_for_the_default_split(name: str) -> None:
    behaviour = ss_lens.load_behaviour(name)
    parts = behaviour.dataset.split(dev=16, test=24, seed=0)
    assert behaviour.name == name
    assert len(parts.train.positive) >= 24
    assert behaviour.dataset.paired
    assert isinstance(behaviour.openings, Openings)
    assert behaviour.shown is not None


@pytest.mark.parametrize("name", [name for name in BEHAVIOURS if name != "refusal"])
def test_embedded_prompts_are_partners_of_like_length(name: str) -> None:
    data = ss_lens.load_behaviour(name).dataset
    words = [[len(text.split()) for text in prompts] for prompts in (data.positive, data.negative)]
    assert len(data.positive) == 64
    assert sum(words[0]) / sum(words[1]) == pytest.approx(1, abs=0.2)
    assert all(text == " ".join(text.split()) for text in (*data.positive, *data.negative))


def test_refusal_is_what_is_measured_without_a_behaviour() -> None:
    behaviour = ss_lens.load_behaviour("refusal")
    assert behaviour.openings == refusal_openings()
    assert behaviour.shown == RatedColumn("refused")
    assert behaviour.identity is None  # so that stored cells stay valid
    assert behaviour.measures.is_refusal
    assert behaviour.measures.score == "refusal_score"


def test_prompts_in_files_are_looked_for_beside_the_behaviour(tmp_path: Path) -> None:
    (tmp_path / "yes.txt").write_text("Ahoy there\nYo ho ho\n")
    (tmp_path / "no.txt").write_text("Good day\nHow are you\n")
    text = "positive: yes.txt\nnegative: no.txt\npattern: (?i)arr\ndescription: Pirates.\n"
    behaviour = ss_lens.load_behaviour(written(tmp_path, text))
    assert behaviour.name == "pirate"
    assert behaviour.dataset.positive == ("Ahoy there", "Yo ho ho")
    assert behaviour.shown == Pattern("(?i)arr")
    assert behaviour.measures.score == "text_score"
    assert behaviour.measures.mass is None


def test_the_layout_of_the_model_written_evaluations_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        ('Is this you?\n"I am"', " Yes", " No"),
        ('Is this you?\n"I am not"', " No", " Yes"),
        ("Pick.\n (A) one\n (B) two", " (B)", " (A)"),
    ]
    lines = [
        json.dumps({**dict(zip(KEYS, row, strict=True)), "label_confidence": 1}) for row in rows
    ]
    (tmp_path / "set.jsonl").write_text("\n".join([*lines, lines[0]]))  # a repeated row is one
    behaviour = ss_lens.load_behaviour(written(tmp_path, "questions: set.jsonl\n"))
    assert isinstance(behaviour.openings, Choices)
    assert len(behaviour.openings.questions) == 3
    assert behaviour.dataset.paired
    assert behaviour.dataset.positive[0].endswith('"I am"\n\nAnswer: Yes')
    assert behaviour.dataset.negative[2].endswith("\n\nAnswer: (A)")
    assert behaviour.asked(behaviour.dataset.negative) == tuple(row[0] for row in rows)
    assert len(behaviour.openings.pairs) == 2
    places, signs = behaviour.openings.oriented([row[0] for row in rows])
    assert (places[0], signs[0], signs[1]) == (places[1], 1.0, -1.0) or signs[0] == -signs[1]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (PROMPTS, ("behaviour 'pirate' has no scorer", "at least one of openings")),
        (PROMPTS + "patern: a\n", ("unknown key 'patern'", "did you mean 'pattern'?")),
        ("pattern: a\npositive: [One]\nnegative: [Two]\n", ("1 prompt in a class", "at least two")),
        ("pattern: a\n", ("are given as nothing", "expected one of dataset")),
        (PROMPTS + "pattern: a\nphrases: [b]\n", ("read by phrases and by pattern",)),
        (PROMPTS + "pattern: (\n", ("is no regular expression",)),
        (PROMPTS + "pattern: a*\n", ("matches the empty text",)),
        (PROMPTS + "openings: {positive: [a]}\n", ("openings lacks negative",)),
        (PROMPTS + "openings: {positive: [a], negatve: [b]}\n", ("did you mean 'negative'?",)),
        (PROMPTS + "phrases: {positve: [a]}\n", ("unknown key 'positve' in phrases",)),
        (PROMPTS + "phrases: [' ']\n", ("no blank one",)),
        (PROMPTS + "phrases: {positive: arr}\n", ("must be a list; got one text",)),
        (PROMPTS + "phrases: [yes]\n", ("the phrase True is not a text", "put it in quotes")),
        (PROMPTS + "openings: [a, b]\n", ("openings is ['a', 'b'], expected the keys positive",)),
        (
            PROMPTS + "openings: {positive: [yes], negative: [b]}\n",
            ("positive[0] of openings is True, as YAML reads yes", "put it in quotes"),
        ),
        (PROMPTS + "openings: {positive: [], negative: [b]}\n", ("at least one text",)),
        (PROMPTS + "openings: {positive: [1], negative: [b]}\n", ("is 1;", "put it in quotes")),
        (PROMPTS + "asking: Be quick.\n", ("expected the keys weakened and strengthened",)),
        (
            PROMPTS + "judge: RubricJudge(model='m', rubric='only {prompt}')\n",
            ("the rubric 'only {prompt}' has no {answer}", "put it where the text belongs"),
        ),
        (
            PROMPTS + "judge: RubricJudge(model='m', rubric='Is it good?')\n",
            ("cannot be read", "or a text with {prompt} and {answer} in it"),
        ),
        (PROMPTS + "judge: RubricJudge(model='m', negative='yes')\n", ("both verdicts",)),
        ("", ("holds nothing",)),
        ("positive: [One, ' ']\nnegative: [Two, Three]\npattern: a\n", ("is blank",)),
        ("positive: [One, Two]\nnegative: [Two, Three]\npattern: a\n", ("in both classes",)),
        (PROMPTS + "judge: Oracle()\n", ("unknown judge",)),
        (PROMPTS + "column: repetition\n", ("column must be one of refused",)),
        ("pattern: a\npositive: [One, Two]\n", ("the negative prompts", "are missing")),
        ("questions: set.jsonl\n", ("row 1 of", "no column 'question'", "model-written")),
        ("dataset: nowhere.jsonl\npattern: a\n", ("there is no file nowhere.jsonl",)),
    ],
    ids=lambda value: value[-30:] if isinstance(value, str) else value[0][:20],
)
def test_a_mistake_in_the_file_is_one_clear_line(
    tmp_path: Path, text: str, fragments: tuple[str, ...]
) -> None:
    (tmp_path / "set.jsonl").write_text('{"prompt": "a", "class": "positive"}\n')
    with pytest.raises(UserError) as caught:
        ss_lens.load_behaviour(written(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    assert "pirate.yaml" in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({KEYS[0]: 5}, "the question must be a text; got 5"),
        ({KEYS[1]: ["Yes"]}, "the answer that matches the behaviour must be a text; got ['Yes']"),
        ({KEYS[2]: " "}, "the answer that does not match it is blank"),
        ({KEYS[2]: " Yes"}, "both answers to the question 'Was it?' are 'Yes'"),
    ],
)
def test_a_mistake_in_a_question_names_its_row(
    changed: dict[str, object], said: str, tmp_path: Path
) -> None:
    row = dict(zip(KEYS, ("Is it?", "Yes", "No"), strict=True))
    rows = [row, {**row, KEYS[0]: "Was it?", **changed}]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as caught:
        ss_lens.load_behaviour(written(tmp_path, "questions: set.jsonl\n"))
    assert "row 2 of" in str(caught.value)
    assert said in str(caught.value)


def test_questions_made_in_python_are_questions() -> None:
    with pytest.raises(UserError, match=r"questions\[0\] must be Question\(text=..., matching="):
        Choices(({"text": "Is it?"},))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="questions must be a list of Question"):
        Choices(None)  # type: ignore[arg-type]


def test_a_rubric_is_looked_for_beside_the_behaviour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process runs, and the rest of the judge stays as it is written."""
    (tmp_path / "formal.md").write_text("Formal? {prompt} {answer} yes or no")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = "judge: RubricJudge(model='m', rubric='formal.md', batch_size=3)\n"
    shown = ss_lens.load_behaviour(written(tmp_path, PROMPTS + text)).shown
    assert isinstance(shown, JudgedBy)
    judge = read_judge(shown.judge)
    assert isinstance(judge, RubricJudge)
    assert (judge.model, judge.batch_size) == ("m", 3)
    assert read_rubric(judge.rubric, OF_WORDS).startswith("Formal?")
    monkeypatch.chdir(tmp_path)
    packaged = PROMPTS + "judge: RubricJudge(model='m')\n"
    assert ss_lens.load_behaviour(written(tmp_path, packaged)).shown == JudgedBy(
        "RubricJudge(model='m')"
    )


@pytest.mark.parametrize("source", ["langage", "nowhere.yaml", "refusal.json"])
def test_an_unknown_behaviour_is_one_clear_line(source: str) -> None:
    with pytest.raises(UserError, match=r"unknown behaviour|there is no behaviour"):
        ss_lens.load_behaviour(source)


def test_questions_have_no_other_prompts(tmp_path: Path, tiny_data: ContrastiveDataset) -> None:
    row = dict(zip(KEYS, ("Is it?", "Yes", "No"), strict=True))
    lines = [json.dumps({**row, "question": text}) for text in ("Is it?", "Was it?")]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    behaviour = ss_lens.load_behaviour(written(tmp_path, "questions: set.jsonl\n"))
    with pytest.raises(UserError, match="asks questions with answers"):
        behaviour.with_dataset(tiny_data)
    assert ss_lens.load_behaviour("language").with_dataset(tiny_data).dataset == tiny_data


def test_a_reader_gives_a_number_per_answer(tiny_data: ContrastiveDataset) -> None:
    phrases = Phrases(("le", "c'est"), ("the",))
    assert phrases(["?"] * 4, ["Le chat, c’est le mien", "THE cat", "le the", ""]) == [1, -1, 0, 0]
    assert Pattern("^Dear")(["?", "?"], ["Dear me", "Oh dear"]) == [1, 0]
    long = Function(lambda answer: len(answer) > 3, name="long")
    behaviour = Behaviour("length", tiny_data, shown=long)
    table = behaviour.read(["?", "?"], ["four", "two"])
    assert table["shown"].tolist() == [1, 0]
    assert table["text_score"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda answer: float("nan"), "is NaN for all 2 answers"),
        (lambda answer: float("inf"), "gave an infinite value"),
    ],
)
def test_a_score_that_says_nothing_is_one_clear_line(
    function: object, said: str, tiny_data: ContrastiveDataset
) -> None:
    reader = Function(function, name="made up")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        Behaviour("nothing", tiny_data, shown=reader).read(["?", "?"], ["a", "b"])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda answer: answer.split()[0] == "No", r"raised IndexError for answer 0 \(list index"),
        (lambda: 1.0, "raised TypeError for answer 0"),
        (lambda answer: None, "gave None for answer 0, expected one number"),
        (lambda answer: [1.0, 2.0], r"gave \[1.0, 2.0\] for answer 0, expected one number"),
        (lambda answer: np.ones(2), "gave a ndarray for answer 0, expected one number"),
        (lambda answer: "1", "gave '1' for answer 0, expected one number"),
    ],
)
def test_a_function_that_gives_no_number_is_one_clear_line(
    function: object, said: str, tiny_data: ContrastiveDataset
) -> None:
    """Before anything is answered: an empty answer and a short one tell."""
    reader = Function(function, name="made up")  # type: ignore[arg-type]
    for call in (Behaviour("odd", tiny_data, shown=reader).check_ready, reader.check_ready):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert "the function 'made up'" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [True, 1, np.float32(1), np.True_, np.array(1.0), torch.ones(())])
def test_a_function_may_give_a_number_of_any_library(value: object) -> None:
    reader = Function(lambda answer: value, name="one")  # type: ignore[arg-type,return-value]
    assert reader(["?"], ["a"]) == [1.0]


def test_answers_are_read_beside_their_prompts(tiny_data: ContrastiveDataset) -> None:
    behaviour = Behaviour("odd", tiny_data, shown=Pattern("a"))
    with pytest.raises(UserError, match="got 1 prompts and 2 answers, expected one answer per"):
        behaviour.read(["?"], ["a", "b"])
    with pytest.raises(UserError, match="answers must be a list; got one text"):
        behaviour.read(["?"], "a")
    assert behaviour.read([], []).empty


def test_some_answers_may_all_lack_a_value_and_all_of_them_may_not() -> None:
    reader = Function(lambda answer: math.nan, name="none")
    assert shown_of_some(reader, ["?"], ["a"]).isna().all(axis=None)
    with pytest.raises(UserError, match="is NaN for all 1 answers, expected a number for some"):
        shown_table(reader, ["?"], ["a"])


def test_what_stored_cells_depend_on_is_how_answers_are_scored(
    tiny_data: ContrastiveDataset,
) -> None:
    def made(**fields: object) -> Behaviour:
        return Behaviour(**{"name": "x", "dataset": tiny_data, **fields})  # type: ignore[arg-type]

    one, other = Openings(("a",), ("b",)), Openings(("a",), ("c",))
    assert made(openings=one).identity == made(name="y", openings=one).identity
    assert made(openings=one).identity != made(openings=other).identity
    assert made(openings=one, shown=Pattern("a")).identity != made(openings=one).identity
    first, second = (Function(len, name="n", version=version) for version in (1, 2))
    assert made(shown=first).identity != made(shown=second).identity
