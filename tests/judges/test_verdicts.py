"""What all judges share: how they print, what they refuse, and the table that they return."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from ss_lens import UserError
from ss_lens.judges import (
    HarmBench,
    Judge,
    LlamaGuard3,
    Opinion,
    PolyGuard,
    Qwen3Guard,
    read_judge,
    summary,
    unload,
    verdict_table,
)
from ss_lens.judges.local import resident
from tests.judges.checkpoints import planted_guard, verdicts


@pytest.mark.parametrize("kind", get_args(Judge))
def test_a_judge_prints_as_what_reads_it(kind: Any) -> None:
    named = kind.__name__ in ("EndpointJudge", "RubricJudge")
    judge = kind(model="some/model") if named else kind()
    assert read_judge(repr(judge)) == judge
    assert "batch_size" not in repr(judge)


@pytest.mark.parametrize("judge", [HarmBench(), PolyGuard(), LlamaGuard3(), Qwen3Guard()])
def test_nothing_to_judge_loads_nothing(judge: Any) -> None:
    table = judge([], [])
    assert list(table.columns) == ["verdict", "score", "parse_ok"]
    assert table.empty


@pytest.mark.parametrize("judge", [HarmBench(), PolyGuard(), LlamaGuard3(), Qwen3Guard()])
@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["w1"], [], "1 prompts and 0 responses"),
        (["w1"], "w2", "responses must be a list of texts"),
    ],
)
def test_pairs_that_do_not_match_are_told(
    judge: Any, prompts: Any, responses: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        judge(prompts, responses)


def test_local_judges_print_and_log_no_response(
    planted_classifier: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    weights = planted_guard(tmp_path / "guard", "qwen3", ["Safety: Safe"], "nothing")
    secret = "verysecretword"
    for judge in (HarmBench(model=planted_classifier), Qwen3Guard(weights=weights)):
        judge([f"w1 {secret}"] * 2, [f"alpha {secret}", secret])
    printed = capfd.readouterr()
    assert secret not in printed.out + printed.err + caplog.text


def test_the_last_judge_stays_loaded_and_goes_before_the_next_comes() -> None:
    alive: list[str] = []

    class Loaded:
        def __init__(self, name: str) -> None:
            assert not alive, "two judges in memory at once"
            alive.append(name)

        def __del__(self) -> None:
            alive.clear()

    first = id(resident(Loaded, "a"))
    assert id(resident(Loaded, "a")) == first
    resident(Loaded, "b")
    assert alive == ["b"]
    unload()
    assert alive == []


# Tables and their summary


def test_a_table_keeps_unparsed_apart_also_on_disk(tmp_path: Path) -> None:
    table = verdict_table([Opinion("harmful", 0.75), Opinion(None), Opinion("safe")])
    assert verdicts(table) == ["harmful", None, "safe"]
    assert table["parse_ok"].tolist() == [True, False, True]
    pd.testing.assert_frame_equal(summary(table), summary(table.astype({"verdict": "str"})))


@given(st.lists(st.sampled_from(["harmful", "safe", None]), max_size=30))
def test_the_summary_counts_every_answer_once(outcomes: list[Any]) -> None:
    rates = summary(verdict_table([Opinion(outcome) for outcome in outcomes])).set_index("outcome")
    parsed = [outcome for outcome in outcomes if outcome is not None]
    assert rates["count"].sum() == len(outcomes)
    assert rates["n"].tolist() == [len(parsed), len(parsed), len(outcomes)]
    for name in ("harmful", "safe"):
        assert rates["count"][name] == outcomes.count(name)
        if parsed:
            assert rates["rate"][name] == outcomes.count(name) / len(parsed)
            assert rates["low"][name] <= rates["rate"][name] <= rates["high"][name]
        else:
            assert math.isnan(rates["rate"][name])
    assert rates["count"]["unparsed"] == outcomes.count(None)


def test_the_intervals_are_wilsons() -> None:
    table = verdict_table([Opinion("harmful")] * 3 + [Opinion("safe")] * 5 + [Opinion(None)] * 2)
    row = summary(table).set_index("outcome").loc["harmful"]
    for bound in (row["low"], row["high"]):  # where the rate is 1.96 standard errors away
        assert abs(row["rate"] - bound) == pytest.approx(
            1.959964 * math.sqrt(bound * (1 - bound) / row["n"]), rel=1e-6
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"verdict": ["safe"]}), "needs the column 'parse_ok'"),
        (pd.DataFrame({"verdict": ["fine"], "parse_ok": [True]}), "verdict 0 is neither"),
        (pd.DataFrame({"verdict": [None], "parse_ok": [True]}), "contradict each other"),
    ],
)
def test_a_table_that_is_none_of_verdicts_is_told(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=message):
        summary(table)
