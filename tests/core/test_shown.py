"""What values look like: short lines of text, and HTML that is escaped and self-contained."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from ss_lens.core.shown import LINE, PARAGRAPH, card, in_lines, listed, shortened, table


def test_facts_become_aligned_lines_that_are_cut() -> None:
    text = in_lines("Title", {"a": "one", "longer": "x" * 400})
    first, second, third = text.splitlines()
    assert first == "Title"
    assert second == "  a:      one"
    assert third.endswith("x…")
    assert len(third) == LINE


def test_a_value_of_several_lines_is_shown_in_one() -> None:
    assert shortened("a\nb  \n") == "a b"
    assert in_lines("t", {"a": "x\ny"}).count("\n") == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), ""), (("a",), "a"), (("a", "b"), "a, b"), (tuple("abcd"), "a, b and 2 more")],
)
def test_a_list_names_the_first_and_counts_the_rest(names: tuple[str, ...], expected: str) -> None:
    assert listed(names, most=2) == expected


def test_a_card_escapes_all_text_and_loads_nothing() -> None:
    evil = '<script>alert("1")</script>&"\''
    html = card(evil, {evil: evil}, table((evil,), [[evil], [0.123456]], caption=evil))
    ElementTree.fromstring(html)
    assert "<script" not in html
    assert "http" not in html
    assert "0.123" in html


def test_a_long_value_of_a_card_is_cut() -> None:
    html = card("t", {"a": "x" * 5000}, table(("b",), [["y" * 5000]], length=20))
    assert html.count("x" * (PARAGRAPH - 1) + "…") == 1
    assert html.count("y" * 19 + "…") == 1


def test_a_card_of_a_title_alone_has_no_table() -> None:
    assert "<table" not in card("t", {})
