"""What a check says of a value: what was expected, what came, and how to write it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ss_lens import RotateTo, UserError
from ss_lens.core.checks import (
    check_at_least,
    check_is,
    check_positive,
    check_texts,
    described,
    is_finite,
)


@dataclass(frozen=True)
class Plain:
    k: int = 8


def test_a_value_of_an_accepted_type_passes() -> None:
    check_is("operator", Plain(), (Plain, str), "an operator")
    check_is("store", None, (Plain, type(None)), "a store or None")
    check_is("flag", True, (bool,), "True or False")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (90, "90"),
        (None, "None"),
        ("all", "'all'"),
        (True, "True"),
        (Path("x"), r"PosixPath\('x'\)"),
        (["a\n" * 99], r"\['a.*…"),
        (Ellipsis, "an ellipsis"),
        (str, "the class str"),
    ],
)
def test_a_wrong_type_is_named_with_what_was_expected(value: object, got: str) -> None:
    with pytest.raises(
        UserError, match=rf"^operator must be an operator such as Plain\(k=8\); got {got}"
    ):
        check_is("operator", value, (Plain,), "an operator such as Plain(k=8)")


def test_a_class_in_place_of_its_value_is_told_how_to_write_it() -> None:
    with pytest.raises(
        UserError,
        match=r"^operator must be an operator; got the class RotateTo itself, which is no value "
        r"yet\. Write RotateTo\(angle_deg=\.\.\.\)\.$",
    ):
        check_is("operator", RotateTo, (RotateTo,), "an operator")
    with pytest.raises(UserError, match=r"Write Plain\(\)\.$"):
        check_is("rule", Plain, (Plain,), "a rule")


def test_a_bool_is_no_number() -> None:
    with pytest.raises(UserError, match="layer must be a whole number; got True"):
        check_is("layer", True, (int,), "a whole number")


def test_a_description_is_one_short_line() -> None:
    assert described({"a": "line\nline"}) == "{'a': 'line\\nline'}"
    assert len(described(list(range(1000)))) == 60


@pytest.mark.parametrize("value", [4.5, 4.0, "4", True, None, [4], float("nan")])
def test_a_count_that_is_no_whole_number_is_named(value: object) -> None:
    message = r"batch_size must be a whole number of at least 1; got .* Write an integer such as"
    with pytest.raises(UserError, match=message):
        check_at_least("batch_size", value)


def test_a_number_beyond_every_float_is_not_finite() -> None:
    with pytest.raises(UserError, match="limit must be a finite number above 0; got 1000"):
        check_positive("limit", 10**400)
    assert not is_finite(-(10**400))
    assert is_finite(10**300)


def test_a_count_may_be_a_whole_number_of_numpy() -> None:
    check_at_least("batch_size", np.int64(1))
    with pytest.raises(UserError, match="batch_size must be at least 2; got 1"):
        check_at_least("batch_size", np.int64(1), 2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one", r"texts must be a list; got one text. Write \['one'\]"),
        (None, r"texts must be a list of texts; got None. Write \['…'\]"),
        (["a", 5], r"texts must be a list of texts; got 5 at place 1. Write ''"),
    ],
)
def test_what_is_no_list_of_texts_is_named(texts: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_texts("texts", texts)
    check_texts("texts", ["a", ""])
