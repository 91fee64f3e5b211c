"""Coherence scores against zlib and hand counts; loops, and what only looks like one."""

from __future__ import annotations

import math
import unicodedata
import zlib

import jaxtyping
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from ss_lens import UserError
from ss_lens.scoring.coherence import (
    CollapseRule,
    coherence,
    coherence_table,
    collapse,
    compression_ratio,
    is_loop,
    non_latin_share,
    repetition,
)


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_compression_ratio_is_bytes_over_zlib_bytes(text: str) -> None:
    raw = text.encode("utf-8")
    assert compression_ratio(text) == len(raw) / len(zlib.compress(raw))


def test_a_loop_compresses_better_than_prose() -> None:
    prose = "A tall ship left the quiet harbour at dawn, bound for islands nobody had yet drawn."
    assert compression_ratio("so it goes " * 8) > 2 * compression_ratio(prose)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e", 0),
        ("a a a a a", 1 / 2),
        ("a b c d a b c d", 1 / 5),
        ("a\nb  c d\ta b c d", 1 / 5),
        ("no " * 103, 99 / 100),
    ],
)
def test_repetition_is_the_share_of_repeated_four_grams(text: str, expected: float) -> None:
    assert repetition(text) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("text", ["", "no", "no no no no"])
def test_repetition_of_a_short_answer_is_undefined(text: str) -> None:
    assert math.isnan(repetition(text))


def test_repetition_takes_other_lengths() -> None:
    assert repetition("a b a b", n=2) == pytest.approx(1 / 3)
    assert repetition("a a", n=1) == 1 / 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", 0),
        ("“Curly” ‘quotes’ – dashes… • and € signs", 0),
        ("naïve façade Žluťoučký kůň æøå ß İı", 0),
        ("party 🎉👩‍🚀 time ™ № 5", 0),
        ("ﬁne ﬂow", 0),
        ("5 µm of 𝐛𝐨𝐥𝐝", 0),
        ("да", 1),
        ("abда", 1 / 2),
        ("abc 中", 1 / 4),
        ("हिंदी", 1),
        ("γειά σου", 1),
        ("ラーメン", 1),
    ],
)
def test_non_latin_share_counts_letters_of_other_scripts(text: str, expected: float) -> None:
    assert non_latin_share(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "42!", "🎉🎉", "“…”"])
def test_non_latin_share_of_a_text_without_letters_is_undefined(text: str) -> None:
    assert math.isnan(non_latin_share(text))


def test_every_letter_named_latin_is_latin_and_none_of_the_great_scripts_is() -> None:
    letters = [
        character
        for character in map(chr, range(0x20000))
        if unicodedata.category(character)[0] == "L"
    ]

    def named(*beginnings: str) -> str:
        return "".join(c for c in letters if unicodedata.name(c, "").startswith(beginnings))

    latin = named("LATIN ", "FULLWIDTH LATIN ")
    assert len(latin) > 1200
    assert non_latin_share(latin) == 0
    foreign = named("CYRILLIC ", "HEBREW ", "CJK UNIFIED", "HIRAGANA ", "KATAKANA ", "HANGUL ")
    assert len(foreign) > 30_000
    assert non_latin_share(foreign) == 1
    others = "".join(c for c in map(chr, range(0x3000)) if unicodedata.category(c)[0] in "PSZN")
    assert math.isnan(non_latin_share(others))


def test_an_empty_answer_scores_nan_and_keeps_its_row() -> None:
    table = coherence(["", "one two three four fivé"])
    assert list(table) == [
        "compression_ratio",
        "repetition",
        "non_latin_share",
        "n_words",
        "n_bytes",
    ]
    assert table.iloc[0].isna().tolist() == [True, True, True, False, False]
    assert table["n_words"].tolist() == [0, 5]
    assert table["n_bytes"].tolist() == [0, 24]
    assert not table.iloc[1].isna().any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("no", False),
        ("no no", False),
        ("no no no", True),
        ("no no no no", True),
        ("no no yes", False),
        ("I'm I'm I", True),
        ("it is it is", False),
        ("it is it is it is", True),
        ("it is it is it is it", True),
        ("it is it is it was", False),
        ("Well: it is it is it is", False),
    ],
)
def test_a_loop_is_one_phrase_three_times_or_more(text: str, expected: bool) -> None:
    assert is_loop(text) is expected


RULE = CollapseRule(
    max_perplexity=50, max_compression_ratio=4, max_repetition=0.5, max_non_latin_share=0.2
)
PROSE = "A tall ship left the quiet harbour at dawn, bound for islands nobody had yet drawn."
ANSWERS = ("so it goes " * 20, "I'm I'm I'm", " \n", "保存 the хлеб", PROSE)


def perplexities(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"perplexity": values, "n_tokens": [len(values)] * len(values)})


def test_each_way_to_collapse_has_its_own_reason_and_prose_has_none() -> None:
    table = coherence_table(ANSWERS, perplexities(1.2, 30, math.nan, 40, 10), RULE)
    assert table["collapsed"].tolist() == [True, True, True, True, False]
    assert table["reasons"].tolist() == [
        "loop; compression_ratio 10 > 4; repetition 0.947 > 0.5",
        "loop",
        "empty",
        "non_latin_share 0.667 > 0.2",
        "",
    ]
    assert table["undefined"].tolist() == [
        "",
        "repetition",
        "perplexity, repetition, non_latin_share",
        "repetition",
        "",
    ]
    assert table["empty"].tolist() == [False, False, True, False, False]
    assert set(coherence(ANSWERS)) | {"perplexity", "n_tokens"} <= set(table)


def test_a_score_collapses_an_answer_above_its_limit_only_and_not_where_it_is_left_out() -> None:
    scores = coherence_table([PROSE] * 3, perplexities(49, 50, 51), RULE)
    assert scores["collapsed"].tolist() == [False, False, True]
    assert scores["reasons"].tolist() == ["", "", "perplexity 51 > 50"]
    without = CollapseRule(
        max_perplexity=None, max_compression_ratio=None, max_repetition=None, max_non_latin_share=1
    )
    assert not collapse(scores, without)["collapsed"].any()
    assert not collapse(scores.drop(columns="perplexity"), without)["collapsed"].any()
    with pytest.raises(UserError, match="no column perplexity; take them from coherence_table"):
        collapse(scores.drop(columns="perplexity"), RULE)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_perplexity": 0.9}, "max_perplexity must be at least 1; got 0.9"),
        ({"max_perplexity": math.inf}, "max_perplexity must be a finite number above 0"),
        ({"max_compression_ratio": 0}, "max_compression_ratio must be a finite number above 0"),
        ({"max_repetition": 1.1}, "max_repetition is a share, between 0 and 1; got 1.1"),
        ({"max_non_latin_share": -0.1}, "max_non_latin_share is a share"),
        ({"max_repetition": math.nan}, "max_repetition is a share"),
    ],
)
def test_an_impossible_limit_is_an_error(limits: dict[str, float], message: str) -> None:
    given = {
        "max_perplexity": None,
        "max_compression_ratio": None,
        "max_repetition": None,
        "max_non_latin_share": None,
    }
    with pytest.raises(UserError, match=message):
        CollapseRule(**{**given, **limits})


def test_every_limit_is_to_be_chosen() -> None:
    with pytest.raises(TypeError, match="max_repetition"):
        CollapseRule(max_perplexity=50, max_compression_ratio=4, max_non_latin_share=0.2)


def test_perplexities_of_other_answers_are_an_error() -> None:
    with pytest.raises(UserError, match="got 5 responses and 2 rows of perplexity"):
        coherence_table(ANSWERS, perplexities(1, 2), RULE)


@pytest.mark.parametrize(
    "text",
    [
        "哈" * 100,
        "哈" * 20,
        "hahaha" * 40,
        "!" * 200,
        "?!" * 30,
        "好的。" * 30,
        "ありがとう" * 8 + "あり",
        "no!" * 20,
        "1," * 50,
        "-" * 80,
        "\n".join(["哈" * 40] * 3),
        "so\u00a0on\u00a0" * 12,
        "hahaha" * 40 + "ha",
    ],
)
def test_a_loop_without_spaces_is_a_loop_and_has_collapsed(text: str) -> None:
    assert is_loop(text)
    without = CollapseRule(
        max_perplexity=None,
        max_compression_ratio=None,
        max_repetition=None,
        max_non_latin_share=None,
    )
    found = coherence_table([text], perplexities(1.1), without).iloc[0]
    assert (found["collapsed"], found["reasons"]) == (True, "loop")


@pytest.mark.parametrize(
    "text",
    [
        "no!!!",
        "Nooooooooooo!!!",
        "哈哈哈",
        "哈哈哈哈哈！",
        "加油！加油！加油！",
        "新年快乐！新年快乐！新年快乐！",
        "hahahaha",
        "hahaha, that is a good one!",
        "...",
        "----------",
        "10000000000000000000000",
        "0.33333333333333333333333333",
        "今天天气很好，我们一起去公园散步吧。公园里有很多花，也有很多孩子在玩。",
        "一是一，二是二，三是三，四是四，五是五，六是六。",
        "すもももももももものうちです。すもももももももものうち、と言います。",
        "1. one\n2. two\n3. three\n4. four\n5. five",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 1 | 2 |\n| 3 | 4 |",
        "| a | b | c | d | e |\n|---|---|---|---|---|\n| 0 | 0 | 0 | 0 | 0 |",
        "Title\n====================================\nText.",
        "for i in range(10):\n    print(i)\nfor j in range(10):\n    print(j)",
        "```\n*\n**\n***\n****\n*****\n******\n```",
        "a = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",
        "ACGTACGATCGATTACAGATTACACCGT",
        "https://example.org/aaaaaaaaaaaaaaaaaaaaaaaa",
        "abababababababababababababababX",
    ],
)
def test_ordinary_text_code_tables_lists_and_short_emphasis_are_no_loops(text: str) -> None:
    assert not is_loop(text)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), st.integers(3, 30))
def test_any_unit_repeated_to_twenty_characters_is_a_loop(unit: str, times: int) -> None:
    text = unit * times
    plain = " ".join(text.split())
    if len(plain) >= 20 and not unit[:1].isspace() and not unit[-1:].isspace():
        assert is_loop(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("so it goes", r"texts must be a list; got one text. Write \['so it goes'\]"),
        (["good", None], r"texts must be a list of texts; got None at place 1. Write ''"),
        (5, r"texts must be a list of texts; got 5. Write \['…'\]"),
    ],
)
def test_what_is_no_list_of_texts_is_not_scored(texts: object, message: str) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # which would object first
    try:
        with pytest.raises(UserError, match=message):
            coherence(texts)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_lone_surrogate_is_scored_and_does_not_end_the_table() -> None:
    found = coherence(["so it \ud800 goes"]).iloc[0]
    assert found["n_bytes"] == 14
    assert found["compression_ratio"] > 0


def test_repetition_of_sequences_of_no_words_is_an_error() -> None:
    with pytest.raises(UserError, match="n must be at least 1; got 0"):
        repetition("so it goes", n=0)
