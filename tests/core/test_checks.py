"""What a check says of a value: what was expected, what came, and how to write it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ss_lens import RotateTo, UserError
from ss_lens.core.checks import check_is, described


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
