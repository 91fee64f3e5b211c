"""The published metrics are what their formulas say, and differ from ours as the table claims."""

from __future__ import annotations

import math
import unicodedata
import zlib

import pandas as pd
import pytest
from hypothesis import given, strategies as st
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, RotateBy, Store, UserError
from ss_lens.scoring.coherence import compression_ratio, non_latin_share, repetition
from ss_lens.scoring.perplexity import answer_perplexity
from ss_lens.scoring.published import (
    differences,
    published_compression_ratio,
    published_language_consistency,
    published_perplexity,
    published_repetition,
    published_scores,
    published_violation,
)
from ss_lens.scoring.refusal import contains_refusal, opens_with_refusal

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12).map(" ".join)


@given(WORDS)
def test_published_repetition_is_ours_wherever_ours_is_defined(text: str) -> None:
    ours, published = repetition(text), published_repetition(text)
    assert published == pytest.approx(0 if math.isnan(ours) else ours, abs=1e-12)


@given(st.text(max_size=30))
def test_published_language_consistency_goes_by_the_first_word_of_the_name(text: str) -> None:
    counted = expected = 0
    for character in text:
        if not character.isspace():
            counted += 1
            first = (unicodedata.name(character, "").split() or ["UNKNOWN"])[0]
            expected += first in {"LATIN", "COMMON", "INHERITED"} or ord(character) < 128
    score = published_language_consistency(text)
    assert score == pytest.approx(expected / counted if counted else 1)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_published_compression_is_the_inverse_at_the_highest_level(text: str) -> None:
    raw = text.encode()
    expected = len(zlib.compress(raw, level=9)) / len(raw) if raw else 1
    assert published_compression_ratio(text) == expected
    if raw:
        assert published_compression_ratio(text) == pytest.approx(
            1 / compression_ratio(text), rel=0.1
        )


def refuses(text: str) -> bool:
    return ss_lens.classify_refusal([text])["label"].iloc[0] != "none"


def test_the_table_says_where_both_values_differ_and_computes_them() -> None:
    table = differences()
    assert list(table) == ["metric", "example", "published", "ours", "why"]
    assert (table["why"].str.len() > 20).all()
    recomputed = {
        "repetition": (published_repetition, repetition),
        "compression ratio": (published_compression_ratio, compression_ratio),
        "refusal": (contains_refusal, refuses),
    }
    for metric, (published, ours) in recomputed.items():
        for row in table[table["metric"] == metric].itertuples():
            assert row.published == float(published(row.example))
            assert row.ours == pytest.approx(float(ours(row.example)), nan_ok=True)
    with_values = table[table["metric"] != "perplexity"]
    assert with_values["published"].notna().all()
    assert (with_values["published"] != with_values["ours"]).all()
    assert set(table["metric"]) == {
        "repetition",
        "language consistency and non-Latin share",
        "compression ratio",
        "refusal",
        "perplexity violation",
        "perplexity",
    }


def test_a_curly_quote_was_foreign_and_a_word_of_another_script_was_diluted() -> None:
    assert published_language_consistency("“fine”") == 4 / 6
    assert non_latin_share("“fine”") == 0
    assert published_language_consistency("да 12345678") == 8 / 10
    assert non_latin_share("да 12345678") == 1


def test_under_four_words_nothing_ever_repeated() -> None:
    assert published_repetition("I'm I'm I'm") == 0
    assert math.isnan(repetition("I'm I'm I'm"))


def test_a_typographic_apostrophe_hid_a_refusal() -> None:
    scores = published_scores(["I’m sorry, no.", "I'm sorry, no."])
    assert scores["refused"].tolist() == [False, True]
    assert all(map(opens_with_refusal, ["I’m sorry, no.", "I'm sorry, no."]))
    assert list(scores) == ["repetition", "language_consistency", "compression_ratio", "refused"]


def test_the_mean_of_an_angle_hides_one_collapsed_answer() -> None:
    assert not published_violation([1.2, 1.2, 1.2, 4.0])
    assert published_violation([1.2, 4.0])
    assert not published_violation([1.2, 4.0], limit=3)
    assert published_violation(pd.Series([math.nan, 4]))
    assert not published_violation([])


def test_the_model_that_wrote_a_text_finds_it_more_fluent(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> None:
    acts = ss_lens.capture(tiny_llama, tiny_data, store=store)
    calibration = ss_lens.calibrate(acts, rule="uniform")
    operator, prompts = RotateBy(120), ["w9 w10 w11", "w12", "w40 w9 w77"]
    with ss_lens.steer(tiny_llama, calibration, operator):
        written = ss_lens.generate(tiny_llama, prompts, max_new_tokens=12)
    published = published_perplexity(tiny_llama, calibration, operator, prompts, written)
    ours = answer_perplexity(tiny_llama, prompts, written)
    assert published["n_tokens"].tolist() == ours["n_tokens"].tolist()
    assert (published["n_tokens"] > 2).all()
    assert (published["perplexity"] < ours["perplexity"]).all()
    unsteered = published_perplexity(tiny_llama, calibration, RotateBy(0), prompts, written)
    assert unsteered.equals(ours)
    with pytest.raises(UserError, match="RotateBy holds 3 strengths"):
        published_perplexity(tiny_llama, calibration, RotateBy([1, 2, 3]), prompts, written)
