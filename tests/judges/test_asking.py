"""A judge behind an endpoint pays once for a verdict, whatever happens on the way."""

from __future__ import annotations

import email.utils
import gzip
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

from ss_lens import UserError
from ss_lens.core.files import cache_root
from ss_lens.judges import Ledger
from ss_lens.judges.limits import Interrupted, retry_after
from tests.judges.served import (
    BROKEN,
    BUSY,
    HARMFUL,
    PROMPTS,
    RESPONSES,
    SAFE,
    Answer,
    Server,
    judge_at,
    kept,
    serving,
)


def test_a_busy_server_is_given_the_rest_that_it_asks_for(server: Server) -> None:
    rest = 0.4
    server.script = lambda name, n: (
        Answer(status=429, headers={"Retry-After": str(rest)})
        if name == "answer-0" and n == 1
        else SAFE
    )
    table = judge_at(server, concurrency=1)(PROMPTS[:3], RESPONSES[:3])
    assert table["parse_ok"].all()
    assert server.asked == ["answer-0", "answer-0", "answer-1", "answer-2"]
    assert server.times[1] - server.times[0] >= rest


def test_all_requests_keep_off_a_server_that_rests(server: Server) -> None:
    rest = 0.5
    server.script = lambda name, n: (
        Answer(status=503, headers={"Retry-After": str(rest)}) if len(server.asked) == 1 else SAFE
    )
    judge_at(server, concurrency=2)(PROMPTS, RESPONSES)
    begun = [moment - server.times[0] for moment in server.times]
    # The second was under way already when the first was told to wait.
    assert sum(moment < 0.8 * rest for moment in begun) <= 3
    assert len(begun) == 9


def test_a_rest_beyond_all_patience_ends_the_judging(server: Server) -> None:
    server.script = lambda name, n: Answer(status=429, headers={"Retry-After": "3600"})
    began = time.monotonic()
    with pytest.raises(UserError, match=r"asks to wait 3600 s, more than max_wait_s=120; 0 of 8"):
        judge_at(server)(PROMPTS, RESPONSES)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_a_passing_failure_is_tried_again(server: Server, status: int) -> None:
    server.script = lambda name, n: Answer(status=status) if n < 3 else HARMFUL
    table = judge_at(server)(PROMPTS[:2], RESPONSES[:2])
    assert table["verdict"].tolist() == ["harmful", "harmful"]
    assert Counter(server.asked) == {"answer-0": 3, "answer-1": 3}


@pytest.mark.parametrize(
    "body", ["<html>Bad gateway</html>", "{", "[]", '{"choices": []}', '{"choices": [{}]}', "null"]
)
def test_what_is_no_completion_is_tried_again(server: Server, body: str) -> None:
    server.script = lambda name, n: Answer(body=body) if n == 1 else SAFE
    assert judge_at(server)(PROMPTS[:1], RESPONSES[:1])["verdict"].tolist() == ["safe"]
    server.script = lambda name, n: Answer(body=body)
    with pytest.raises(UserError, match="something else than a chat completion, at the last of 3"):
        judge_at(server)(PROMPTS[1:2], RESPONSES[1:2])


def test_the_pause_doubles(server: Server) -> None:
    server.script = lambda name, n: BUSY if n < 4 else SAFE
    judge_at(server, backoff_s=0.2, max_attempts=4)(PROMPTS[:1], RESPONSES[:1])
    pauses = [late - early for early, late in zip(server.times, server.times[1:], strict=False)]
    for attempt, pause in enumerate(pauses):
        assert pause >= 0.2 * 2**attempt / 2


def test_a_hang_times_out_and_is_tried_again(server: Server) -> None:
    server.script = lambda name, n: Answer(hangs=True) if n == 1 else SAFE
    table = judge_at(server, timeout_s=1.5)(PROMPTS[:2], RESPONSES[:2])
    assert table["parse_ok"].all()
    assert Counter(server.asked) == {"answer-0": 2, "answer-1": 2}


def test_a_server_that_stays_silent_ends_the_judging_and_costs_nothing_done(server: Server) -> None:
    server.script = lambda name, n: Answer(hangs=True) if name == "answer-3" else SAFE
    judge = judge_at(server, timeout_s=1.5, max_attempts=2, concurrency=1)
    with pytest.raises(
        UserError,
        match=r"did not answer within 1.5 s, at the last of 2 attempts; 3 of 8 answers are judged",
    ):
        judge(PROMPTS, RESPONSES)
    server.script = lambda name, n: SAFE
    assert judge(PROMPTS, RESPONSES)["parse_ok"].all()
    assert Counter(server.asked) == {**dict.fromkeys(RESPONSES, 1), "answer-3": 3}


def test_no_server_at_all_is_told(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"there is no connection to the server.*0 of 8"):
        judge_at(server)(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "it does not accept the request.*temperature=None"),
        (401, "it does not accept the key.*check the key in JUDGE_KEY"),
        (402, "no credit left"),
        (403, "it does not accept the key"),
        (404, "it does not know the model or the path"),
        (422, "it does not accept the request"),
    ],
)
def test_a_refusal_of_the_server_is_not_tried_again(
    server: Server, status: int, message: str
) -> None:
    server.script = lambda name, n: Answer(status=status)
    with pytest.raises(UserError, match=message):
        judge_at(server, concurrency=1)(PROMPTS, RESPONSES)
    assert len(server.asked) == 1


def test_an_empty_account_is_not_taken_for_a_busy_server(server: Server) -> None:
    body = json.dumps({"error": {"message": "no", "code": "insufficient_quota"}})
    server.script = lambda name, n: Answer(status=429, body=body)
    with pytest.raises(UserError, match="no credit left"):
        judge_at(server, concurrency=1)(PROMPTS, RESPONSES)
    assert len(server.asked) == 1


def test_a_full_disk_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UserError("no space left under here; what was finished is kept.")

    monkeypatch.setattr("ss_lens.judges.verdict_cache.write_sealed_json", full)
    with pytest.raises(UserError, match="no space left"):
        judge_at(server, concurrency=2)(PROMPTS, RESPONSES)
    assert len(server.asked) < len(PROMPTS), "what cannot be kept must not be paid for"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", None), ("nan", None), ("", None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after({"retry-after": date}) == pytest.approx(100, abs=2)
    assert retry_after({}) is None


# What comes back, and from where


@pytest.fixture
def stranger() -> Iterator[Server]:
    yield from serving()


def test_a_redirect_to_another_origin_takes_no_text_along(server: Server, stranger: Server) -> None:
    server.script = lambda name, n: Answer(status=307, headers={"Location": stranger.url})
    with pytest.raises(
        UserError, match=rf"redirects to {stranger.url[:-3]}, which was not asked; 0 of 8.*base_url"
    ):
        judge_at(server, concurrency=1)(PROMPTS, RESPONSES)
    assert stranger.asked == []
    assert len(server.asked) == 1


def test_a_redirect_within_the_origin_is_followed(server: Server) -> None:
    server.script = lambda name, n: (
        Answer(status=308, headers={"Location": "/v2/chat"}) if n == 1 else HARMFUL
    )
    table = judge_at(server)(PROMPTS[:1], RESPONSES[:1])
    assert table["verdict"].tolist() == ["harmful"]
    assert [sent["path"] for sent in server.sent] == ["/v1/chat/completions", "/v2/chat"]


def test_redirects_in_a_circle_end(server: Server) -> None:
    server.script = lambda name, n: Answer(status=307, headers={"Location": "/v1/again"})
    with pytest.raises(UserError, match="0 of 1 answers are judged"):
        judge_at(server, max_attempts=1)(PROMPTS[:1], RESPONSES[:1])
    assert len(server.asked) == 6


def test_a_reply_without_end_is_not_read_to_its_end(server: Server) -> None:
    server.script = lambda name, n: Answer(body=" " * (1 << 21)) if n == 1 else SAFE
    assert judge_at(server)(PROMPTS[:1], RESPONSES[:1])["parse_ok"].all()
    server.script = lambda name, n: Answer(body=" " * (1 << 21))
    with pytest.raises(UserError, match="reply exceeds 1,048,576 bytes, at the last of 3"):
        judge_at(server)(PROMPTS[1:2], RESPONSES[1:2])


def test_a_small_reply_that_unpacks_without_end_is_not_read_to_its_end(server: Server) -> None:
    packed = gzip.compress(b" " * (1 << 24)).decode("latin-1")
    server.script = lambda name, n: Answer(body=packed, headers={"Content-Encoding": "gzip"})
    with pytest.raises(UserError, match="reply exceeds 1,048,576 bytes"):
        judge_at(server, max_attempts=1)(PROMPTS[:1], RESPONSES[:1])


def test_a_packed_reply_is_unpacked(server: Server) -> None:
    body = json.dumps({"choices": [{"message": {"content": "harmful"}}]})
    packed = gzip.compress(body.encode()).decode("latin-1")
    server.script = lambda name, n: Answer(body=packed, headers={"Content-Encoding": "gzip"})
    assert judge_at(server)(PROMPTS[:1], RESPONSES[:1])["verdict"].tolist() == ["harmful"]


def test_a_body_that_drips_times_out(server: Server) -> None:
    """A byte every now and then keeps each read within the timeout, and the whole for ever."""
    server.script = lambda name, n: Answer(drips=True) if n == 1 else SAFE
    began = time.monotonic()
    assert judge_at(server, timeout_s=0.6)(PROMPTS[:1], RESPONSES[:1])["parse_ok"].all()
    assert time.monotonic() - began < 10
    assert server.asked == ["answer-0"] * 2


def test_half_a_character_in_a_reply_spoils_no_other(server: Server) -> None:
    server.script = lambda name, n: (
        Answer('{"verdict": "harmful", "why": "\ud83d"}') if name == "answer-1" else SAFE
    )
    judge = judge_at(server)
    for _ in range(2):  # from the server, then from the disk
        table = judge(PROMPTS, RESPONSES)
        assert table["verdict"].tolist() == ["safe", "harmful", *["safe"] * 6]
    assert sorted(server.asked) == RESPONSES


def test_half_a_character_in_what_is_judged_is_told_before_any_request(server: Server) -> None:
    with pytest.raises(UserError, match=r"responses\[1\] holds half a character"):
        judge_at(server)(PROMPTS[:2], ["answer-0", "answer-1 \udc80"])
    assert server.asked == []


# Limits


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_requests_are_under_way_than_allowed(server: Server, limit: int) -> None:
    def release() -> None:
        deadline = time.monotonic() + 20
        while len(server.asked) < limit and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # in which one too many would come
        server.let_go.set()

    server.script = lambda name, n: Answer(hangs=True)
    thread = threading.Thread(target=release)
    thread.start()
    judge_at(server, concurrency=limit)(PROMPTS, RESPONSES)
    thread.join()
    assert server.most_at_once == limit


def test_a_budget_of_requests_stops_and_keeps(server: Server) -> None:
    judge = judge_at(server, max_requests=5)
    with pytest.raises(
        UserError,
        match=r"the budget of 5 requests is used up; 5 of 8 answers are judged, and their "
        r"verdicts are kept in .*verdicts: raise max_requests, then run the same again",
    ):
        judge(PROMPTS, RESPONSES)
    assert len(server.asked) == len(kept()) == 5
    assert judge(PROMPTS, RESPONSES)["parse_ok"].all()
    assert sorted(server.asked) == RESPONSES


def test_the_budget_is_named_even_where_those_told_to_stop_are_collected_first(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_first(futures: Iterable[Future[Any]]) -> list[Future[Any]]:
        """All of them, once they are done: an order that ``as_completed`` may have."""
        order = sorted(wait(futures).done, key=lambda f: not isinstance(f.exception(), Interrupted))
        assert isinstance(order[0].exception(), Interrupted)
        return order

    monkeypatch.setattr("ss_lens.judges.asking.as_completed", told_first)
    with pytest.raises(UserError, match="the budget of 5 requests is used up; 5 of 8"):
        judge_at(server, max_requests=5, concurrency=1)(PROMPTS, RESPONSES)


def test_retries_count_towards_the_budget(server: Server) -> None:
    server.script = lambda name, n: BROKEN
    with pytest.raises(UserError, match="the budget of 2 requests is used up; 0 of 8"):
        judge_at(server, max_requests=2, concurrency=1)(PROMPTS, RESPONSES)
    assert len(server.asked) == 2


def test_a_budget_of_nothing_still_serves_what_is_kept(server: Server) -> None:
    judge_at(server)(PROMPTS[:2], RESPONSES[:2])
    judge = judge_at(server, max_requests=0)
    assert judge(PROMPTS[:2], RESPONSES[:2])["parse_ok"].all()
    with pytest.raises(UserError, match="2 of 3 answers are judged"):
        judge(PROMPTS[:3], RESPONSES[:3])


def test_a_budget_of_tokens_stops_and_keeps(server: Server) -> None:
    judge = judge_at(server, max_total_tokens=30, concurrency=1)
    with pytest.raises(UserError, match=r"the budget of 30 tokens is used up; 3 of 8.*raise max_"):
        judge(PROMPTS, RESPONSES)
    assert len(server.asked) == 3


def test_tokens_that_are_not_counted_cannot_be_limited(server: Server) -> None:
    server.script = lambda name, n: Answer(tokens=None)
    with pytest.raises(UserError, match=r"does not say how many tokens.*1 of 8.*use max_requests"):
        judge_at(server, max_total_tokens=30, concurrency=1)(PROMPTS, RESPONSES)
    assert len(kept()) == 1
    assert judge_at(server)(PROMPTS, RESPONSES)["parse_ok"].all()


def test_a_ledger_makes_one_budget_of_several_calls(server: Server) -> None:
    ledger, judge = Ledger(), judge_at(server, max_requests=5)
    judge(PROMPTS[:4], RESPONSES[:4], ledger=ledger)
    assert (ledger.requests, ledger.tokens) == (4, 40)
    with pytest.raises(UserError, match="the budget of 5 requests is used up; 1 of 4"):
        judge(PROMPTS[4:], RESPONSES[4:], ledger=ledger)
    assert ledger.requests == len(server.asked) == 5


# Interruption

SCRIPT = """
    import sys
    from ss_lens.judges import EndpointJudge
    judge = EndpointJudge(
        model="judge-model", base_url=sys.argv[1], api_key_env="JUDGE_KEY", concurrency=1
    )
    names = range(8)
    judge([f"question-{i}" for i in names], [f"answer-{i}" for i in names])
"""


def test_a_killed_run_goes_on_without_repeating(server: Server) -> None:
    """``kill -9`` while the fifth request is under way: four verdicts are on disk, and stay."""
    server.script = lambda name, n: Answer(hangs=name == "answer-4" and n == 1)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), server.url],
        env={**os.environ, "SS_LENS_HOME": str(cache_root())},
    )
    deadline = time.monotonic() + 120
    while "answer-4" not in server.asked:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(kept()) == 4
    assert judge_at(server)(PROMPTS, RESPONSES)["parse_ok"].all()
    assert Counter(server.asked) == {**dict.fromkeys(RESPONSES, 1), "answer-4": 2}


def test_an_interrupt_waits_for_what_is_paid_and_no_more(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control-C comes to the main thread while it waits for the first verdict."""

    def interrupted(_: object) -> Iterator[None]:
        while len(server.asked) < 2:
            time.sleep(0.01)
        threading.Timer(0.2, server.let_go.set).start()
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("ss_lens.judges.asking.as_completed", interrupted)
    server.script = lambda name, n: Answer(hangs=True)
    with pytest.raises(KeyboardInterrupt):
        judge_at(server, concurrency=2)(PROMPTS, RESPONSES)
    assert len(server.asked) == len(kept()) == 2
