"""A reply that is kept on disk is neither paid for twice nor served wrong."""

from __future__ import annotations

import json
import random
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ss_lens.core.files import cache_root
from ss_lens.judges import read_judge
from ss_lens.judges.verdict_cache import VerdictCache
from tests.judges.served import (
    BROKEN,
    HARMFUL,
    PROMPTS,
    RESPONSES,
    SAFE,
    SECRET,
    Server,
    judge_at,
    kept,
)


def test_nothing_is_paid_for_twice(server: Server) -> None:
    judge = judge_at(server)
    first = judge(PROMPTS, RESPONSES)
    assert sorted(server.asked) == RESPONSES
    again = judge(PROMPTS[::-1], RESPONSES[::-1])
    assert sorted(server.asked) == RESPONSES
    assert again["verdict"].tolist() == first["verdict"].tolist()[::-1]


def test_kept_verdicts_need_neither_server_nor_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_at(server)
    table = judge(PROMPTS, RESPONSES)
    server.script = lambda name, n: BROKEN
    monkeypatch.delenv("JUDGE_KEY")
    monkeypatch.setitem(sys.modules, "openai", None)
    assert judge(PROMPTS, RESPONSES).equals(table)


def test_equal_pairs_are_asked_once(server: Server) -> None:
    table = judge_at(server)(PROMPTS[:1] * 5, RESPONSES[:1] * 5)
    assert server.asked == ["answer-0"]
    assert table["verdict"].tolist() == ["safe"] * 5


@pytest.mark.parametrize(
    "other", [{"model": "other"}, {"temperature": 0.5}, {"max_tokens": 99}, {"json_mode": True}]
)
def test_another_judge_is_asked_anew(server: Server, other: dict[str, Any]) -> None:
    for settings in ({}, other):
        judge_at(server, **settings)(PROMPTS[:1], RESPONSES[:1])
    assert server.asked == ["answer-0"] * 2


def test_another_text_or_rubric_is_asked_anew(server: Server, tmp_path: Path) -> None:
    rubric = tmp_path / "mine.md"
    for text, prompt, response in (
        ("{prompt} {response}", "question-0", "answer-0"),
        ("{prompt} {response} ", "question-0", "answer-0"),
        ("{prompt} {response} ", "question-1", "answer-0"),
        ("{prompt} {response} ", "question-1", "answer-0 "),
    ):
        rubric.write_text(text, "utf-8")
        judge_at(server, rubric=str(rubric))([prompt], [response])
    assert server.asked == ["answer-0"] * 4


def test_how_it_is_asked_changes_no_verdict(server: Server) -> None:
    judge_at(server)(PROMPTS[:1], RESPONSES[:1])
    other = judge_at(server, concurrency=1, timeout_s=3, max_requests=5, max_attempts=9)
    other(PROMPTS[:1], RESPONSES[:1])
    assert server.asked == ["answer-0"]
    assert other == judge_at(server)
    assert read_judge(repr(other)) == other


def test_a_damaged_verdict_is_told_and_asked_for_again(server: Server) -> None:
    judge = judge_at(server)
    judge(PROMPTS[:2], RESPONSES[:2])
    damaged, wrong = kept()
    damaged.write_text('{"reply"', "utf-8")
    wrong.write_text('{"reply": 3, "tokens": null}', "utf-8")
    with pytest.warns(UserWarning, match="is damaged; it is asked for again"):
        assert judge(PROMPTS[:2], RESPONSES[:2])["parse_ok"].all()
    assert len(server.asked) == 4
    judge(PROMPTS[:2], RESPONSES[:2])
    assert len(server.asked) == 4


def test_every_flip_and_cut_of_a_kept_verdict_is_noticed_or_changes_nothing(
    server: Server,
) -> None:
    judge = judge_at(server)
    judge(PROMPTS[:1], RESPONSES[:1])
    (path,) = kept()
    whole, cache, key = path.read_bytes(), VerdictCache(), path.stem
    reply = cache.read(key)
    generator = random.Random(0)
    damaged = [whole[: generator.randrange(len(whole))] for _ in range(40)]
    for _ in range(400):
        place = generator.randrange(len(whole))
        flipped = bytes([whole[place] ^ (1 << generator.randrange(8))])
        damaged.append(whole[:place] + flipped + whole[place + 1 :])
    outcomes: Counter[str] = Counter()
    for content in damaged:
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = cache.read(key)
        assert found == reply or (found is None and "is damaged" in str(told[0].message))
        outcomes["told" if found is None else "unchanged"] += 1
    assert outcomes["told"] > 350


def test_the_verdict_of_another_question_is_not_served(server: Server) -> None:
    server.script = lambda name, n: HARMFUL if name == "answer-0" else SAFE
    judge = judge_at(server)
    before = judge(PROMPTS[:2], RESPONSES[:2])
    one, other = kept()
    one.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="is damaged; it is asked for again"):
        assert judge(PROMPTS[:2], RESPONSES[:2]).equals(before)
    assert len(server.asked) == 3


def test_a_verdict_from_before_files_were_sealed_is_served(server: Server) -> None:
    judge = judge_at(server)
    before = judge(PROMPTS[:1], RESPONSES[:1])
    (path,) = kept()
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({n: content[n] for n in ("format", "judge", "reply", "tokens")}))
    assert judge(PROMPTS[:1], RESPONSES[:1]).equals(before)
    assert len(server.asked) == 1


def test_the_cache_holds_neither_prompt_nor_response_nor_key(server: Server) -> None:
    judge_at(server)(["question-0 qqq"], ["answer-0 zzz"])
    everything = "".join(
        str(path) + (path.read_text("utf-8") if path.is_file() else "")
        for path in cache_root().rglob("*")
    )
    for private in ("qqq", "zzz", SECRET):
        assert private not in everything
    assert json.loads(kept()[0].read_text("utf-8"))["judge"]["model"] == "judge-model"


def test_two_callers_with_the_same_questions_pay_once(server: Server) -> None:
    """Two threads stand for two processes: each has its own locks, as a process has."""
    tables: list[Any] = []

    def run() -> None:
        tables.append(judge_at(server)(PROMPTS, RESPONSES))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.asked) == RESPONSES
    assert tables[0].equals(tables[1])


def test_the_cache_key_depends_on_every_part() -> None:
    keys = {
        VerdictCache.key(judge, prompt, response)
        for judge in ({"model": "a"}, {"model": "b"})
        for prompt, response in (("a", "b"), ("ab", ""), ("", "ab"), ("b", "a"))
    }
    assert len(keys) == 8
