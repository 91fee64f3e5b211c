"""Values read from text: whatever stands there ends in a value or in one line."""

from __future__ import annotations

import pytest

from ss_lens import UserError
from ss_lens.calibration.site_selection import TopK
from ss_lens.core.values import read_value
from ss_lens.geometry.operators import Operator

DEEP = {
    "parentheses": "(" * 5000 + "1" + ")" * 5000,
    "signs": "-" * 100_000 + "1",
    "brackets": "[" * 150_000,
    "attributes": "a" + ".b" * 100_000,
    "sums": "+".join(["1"] * 100_000),
}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "as an argument"])
@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_text_that_nests_deeply_cannot_be_read(deep: str, inside: bool) -> None:
    text = f"RotateBy(angle_deg={deep})" if inside else deep
    with pytest.raises(UserError, match=r"^operator '.*…' cannot be read; write it like") as error:
        read_value(text, Operator.kinds(), "operator")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "literal",
    [
        *("{1}", "b'12'", "'12'", "{[]: 1}", "{}", "None", "True", "[True]", "...", "1j"),
        *("9" * 400, "9" * 5000, "1e999", "[]", "[[1, 2], [3]]", "(1, 'a')", "'\\ud800'"),
    ],
    ids=lambda literal: literal[:10],
)
@pytest.mark.parametrize("kind", ["RotateBy(angle_deg=", "Add(alpha=", "ActAdd(coefficient="])
def test_a_literal_that_is_no_strength_is_refused_in_one_line(kind: str, literal: str) -> None:
    with pytest.raises(UserError) as error:
        read_value(f"{kind}{literal})", Operator.kinds(), "operator")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_a_number_that_no_float_holds_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"^rule 'TopK\(k=9+…' cannot be read|^k must"):
        read_value(f"TopK(k={'9' * 5000})", [TopK], "rule")
