"""Paired comparisons against a reference: levels, differences, tests and their correction."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, permutation_test

from ss_lens.core.errors import UserError
from ss_lens.stats.intervals import wilson_interval
from ss_lens.stats.paired import compare, holm


def cells(values: dict[str, list], label: str = "positive") -> pd.DataFrame:
    """Rows of a table from ``values[variant][draw][prompt]``."""
    rows = [
        {"variant": variant, "draw": draw, "prompt_class": label, "prompt_index": i, "score": value}
        for variant, draws in values.items()
        for draw, prompts in enumerate(draws)
        for i, value in enumerate(prompts)
    ]
    return pd.DataFrame(rows)


def row_of(table: pd.DataFrame, variant: str) -> pd.Series:
    return table.set_index("variant").loc[variant]


def test_the_difference_is_paired_by_prompt_and_tested_exactly_for_few_prompts() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(0.4, size=9)
    found = row_of(
        compare(cells({"full": [a.tolist()], "other": [b.tolist()]}), ["score"], "full"), "other"
    )
    effects = b - a
    assert found["difference"] == pytest.approx(effects.mean())
    null = [abs((effects * signs).mean()) for signs in product([1, -1], repeat=9)]
    exact = np.mean([value >= abs(effects.mean()) * (1 - 1e-12) for value in null])
    assert found["p_value"] == pytest.approx(exact)
    oracle = permutation_test(
        (b, a), lambda x, y: (x - y).mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert found["p_value"] == pytest.approx(oracle.pvalue)
    assert found["difference_low"] < found["difference"] < found["difference_high"]


def test_the_order_of_rows_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    table = cells({name: [rng.normal(size=30).tolist()] for name in ("full", "x", "y")})
    mixed = table.sample(frac=1, random_state=0)
    one = compare(table, ["score"], "full").set_index("variant").sort_index()
    other = compare(mixed, ["score"], "full").set_index("variant").sort_index()
    pd.testing.assert_frame_equal(one, other)


def test_draws_are_averaged_per_prompt_so_that_prompts_and_not_draws_are_the_sample() -> None:
    full, draws = [1.0, 2.0, 3.0], [[2.0, 2.0, 5.0], [4.0, 0.0, 3.0]]
    found = row_of(compare(cells({"full": [full], "drawn": draws}), ["score"], "full"), "drawn")
    assert found["n"] == found["n_pairs"] == 3
    assert found["draws"] == 2
    assert found["mean"] == pytest.approx(np.mean(draws))
    assert (found["draw_low"], found["draw_high"]) == pytest.approx((7 / 3, 3.0))
    assert found["difference"] == pytest.approx(np.mean([3.0 - 1, 1.0 - 2, 4.0 - 3]))


def test_a_rate_of_one_draw_has_wilsons_interval() -> None:
    table = compare(cells({"full": [[True, False, True, True]]}), ["score"], "full")
    found = row_of(table, "full")
    assert (found["low"], found["high"]) == wilson_interval(3, 4)
    assert math.isnan(found["p_value"])
    assert math.isnan(found["p_holm"])


def test_prompts_without_a_value_leave_the_pairs_and_are_not_zero() -> None:
    values = {"full": [[1.0, math.nan, 3.0]], "other": [[2.0, 5.0, math.nan]]}
    found = row_of(compare(cells(values), ["score"], "full"), "other")
    assert (found["n"], found["n_pairs"]) == (2, 1)
    assert found["difference"] == 1.0
    nothing = {"full": [[1.0]], "other": [[math.nan]]}
    empty = row_of(compare(cells(nothing), ["score"], "full"), "other")
    assert empty["n_pairs"] == 0
    assert math.isnan(empty["p_value"])
    assert math.isnan(empty["difference_low"])


def test_identical_variants_do_not_differ() -> None:
    values = np.random.default_rng(2).normal(size=20).tolist()
    found = row_of(compare(cells({"full": [values], "same": [values]}), ["score"], "full"), "same")
    assert found["p_value"] == 1.0
    assert found["difference"] == found["difference_low"] == found["difference_high"] == 0.0


def test_classes_are_compared_apart() -> None:
    both = pd.concat(
        [
            cells({"full": [[0.0] * 8], "x": [[1.0] * 8]}),
            cells({"full": [[5.0] * 8], "x": [[5.0] * 8]}, "negative"),
        ]
    )
    table = compare(both, ["score"], "full").query("variant == 'x'").set_index("prompt_class")
    assert table["difference"].to_dict() == {"positive": 1.0, "negative": 0.0}
    assert table.loc["positive", "p_value"] == pytest.approx(2 / 2**8)


def test_false_alarms_come_at_the_rate_that_is_claimed() -> None:
    """200 comparisons of nothing: about 1 in 20 has p < 0.05, and the intervals cover 0."""
    rng = np.random.default_rng(3)
    noise = {f"v{i}": [rng.normal(size=24).tolist()] for i in range(200)}
    table = compare(cells({"full": [[0.0] * 24], **noise}), ["score"], "full").dropna(
        subset="p_value"
    )
    assert 2 <= (table["p_value"] < 0.05).sum() <= 20
    assert (table["p_holm"] < 0.05).sum() == 0
    covered = (table["difference_low"] <= 0) & (table["difference_high"] >= 0)
    assert 0.87 <= covered.mean() <= 0.99


def test_holm_against_its_definition() -> None:
    p = pd.Series([0.04, 0.001, math.nan, 0.03, 0.2])
    order, m = [0.001, 0.03, 0.04, 0.2], 4
    steps = [min(1.0, max((m - j) * order[j] for j in range(i + 1))) for i in range(m)]
    expected = dict(zip(order, steps, strict=True))
    for given, corrected in zip(p, holm(p), strict=True):
        assert math.isnan(corrected) if math.isnan(given) else corrected == expected[given]
    # Never below what controls the false discovery rate, which asks for less.
    assert (holm(p.dropna()) >= false_discovery_control(p.dropna()) - 1e-12).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="score"), "no column score; it has variant, draw"),
        (lambda t: t[t["variant"] != "full"], "no variant 'full' to compare with; there are other"),
        (lambda t: pd.concat([t, t.head(1)]), "twice in one draw of a variant"),
    ],
)
def test_tables_that_cannot_be_compared(change, message: str) -> None:
    table = cells({"full": [[1.0, 2.0]], "other": [[1.0, 2.0]]})
    with pytest.raises(UserError, match=message):
        compare(change(table), ["score"], "full")


def test_a_rate_with_undefined_answers_is_a_rate_of_the_others() -> None:
    """Missing values turn a column of truth values into one of objects."""
    table = compare(cells({"full": [[True, None, False, True]]}), ["score"], "full")
    found = row_of(table, "full")
    assert found["n"] == 3
    assert (found["low"], found["high"]) == wilson_interval(2, 3)


def test_ties_and_equal_effects_have_the_p_value_of_their_signs() -> None:
    """Of n equal effects 2 of 2ⁿ patterns of signs reach the mean; zeros count for neither side."""
    for effects, expected in (([2.0] * 5, 2 / 2**5), ([0.3, 0.3, 0.0], 1 / 2), ([0.0] * 4, 1.0)):
        table = cells({"full": [[0.0] * len(effects)], "x": [effects]})
        found = row_of(compare(table, ["score"], "full"), "x")
        assert found["p_value"] == pytest.approx(expected)
    many = cells({"full": [[0.0] * 40], "x": [[0.1] * 40]})
    assert row_of(compare(many, ["score"], "full"), "x")["p_value"] == pytest.approx(1 / 10_001)


def test_holm_gives_equal_p_values_the_same_correction() -> None:
    assert holm(pd.Series([0.02, 0.02, 0.5])).tolist() == pytest.approx([0.06, 0.06, 0.5])
    assert holm(pd.Series([math.nan, math.nan])).isna().all()
    assert holm(pd.Series([0.03])).tolist() == [0.03]


def test_one_pair_has_a_difference_and_no_interval() -> None:
    found = row_of(compare(cells({"full": [[1.0]], "x": [[3.0]]}), ["score"], "full"), "x")
    assert (found["n_pairs"], found["difference"]) == (1, 2.0)
    assert np.isnan([found["difference_low"], found["difference_high"]]).all()
