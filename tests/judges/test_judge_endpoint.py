"""A judge behind an endpoint pays once for a verdict, whatever happens on the way.

The server is a real one on 127.0.0.1 that speaks the chat-completions interface; a test says how it
answers, and it counts.
"""

from __future__ import annotations

import email.utils
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ss_lens import UserError
from ss_lens.core.files import cache_root
from ss_lens.judges import EndpointJudge, Ledger, read_judge, summary
from ss_lens.judges.failures import retry_after
from ss_lens.judges.rubric import fill, read_rubric
from ss_lens.judges.spending import Interrupted
from ss_lens.judges.verdict_cache import VerdictCache

SECRET = "sk-test-0123456789-never-to-be-seen"
PROMPTS = [f"question-{i}" for i in range(8)]
RESPONSES = [f"answer-{i}" for i in range(8)]


@dataclass(frozen=True)
class Answer:
    """What the server says to one request."""

    content: str | None = '{"verdict": "safe", "score": 0.25}'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    tokens: int | None = 10
    hangs: bool = False


HARMFUL = Answer('{"verdict": "harmful", "score": 0.75}')
SAFE = Answer()
BUSY = Answer(status=429)
BROKEN = Answer(status=500)


class Server(ThreadingHTTPServer):
    """Answers ``script(name, n)`` to the n-th request about the response called ``name``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: Callable[[str, int], Answer] = lambda name, n: SAFE
        self.asked: list[str] = []
        self.times: list[float] = []
        self.sent: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most_at_once = 0
        self.under_way = 0
        self.let_go = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that hung up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = re.findall(r"answer-\d+", request["messages"][-1]["content"])[-1]
        with server.lock:
            server.asked.append(name)
            server.times.append(time.monotonic())
            server.sent.append({"path": self.path, **request})
            server.keys.add(self.headers["Authorization"])
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
            answer = server.script(name, server.asked.count(name))
        try:
            if answer.hangs:
                server.let_go.wait(30)
            self._say(answer)
        finally:
            with server.lock:
                server.under_way -= 1

    def _say(self, answer: Answer) -> None:
        message = {"role": "assistant", "content": answer.content}
        body: dict[str, Any] = {"choices": [{"index": 0, "message": message}]}
        if answer.tokens is not None:
            body["usage"] = {"total_tokens": answer.tokens}
        if answer.status != 200:  # as servers do, it repeats what it was sent
            body = {"error": {"message": f"no {self.headers['Authorization']}", "code": "busy"}}
        payload = (answer.body or json.dumps(body)).encode()
        self.send_response(answer.status)
        for header, value in answer.headers.items():
            self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield started
    started.let_go.set()
    started.shutdown()
    started.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)


def judge_at(server: Server, **settings: Any) -> EndpointJudge:
    given = {
        "model": "judge-model",
        "base_url": server.url,
        "api_key_env": "JUDGE_KEY",
        "backoff_s": 0.01,
        "max_attempts": 3,
        "timeout_s": 30,
    }
    return EndpointJudge(**{**given, **settings})


def kept() -> list[Path]:
    return sorted((cache_root() / "verdicts").glob("*/*.json"))


# Verdicts


def test_verdicts_follow_the_order_of_the_answers(server: Server) -> None:
    server.script = lambda name, n: HARMFUL if name in ("answer-1", "answer-6") else SAFE
    table = judge_at(server)(PROMPTS, RESPONSES)
    assert [i for i in range(8) if table["verdict"][i] == "harmful"] == [1, 6]
    assert table["score"].tolist() == [0.75 if i in (1, 6) else 0.25 for i in range(8)]
    assert table["parse_ok"].all()


def test_the_request_is_the_rubric_with_both_texts_greedy(server: Server) -> None:
    judge_at(server)(["question-0 {response}"], ["answer-0 {prompt}"])
    (sent,) = server.sent
    (message,) = sent["messages"]
    rubric = read_rubric("refusal")
    begin, rest = rubric.split("{prompt}")
    middle, end = rest.split("{response}")
    assert message == {
        "role": "user",
        "content": f"{begin}question-0 {{response}}{middle}answer-0 {{prompt}}{end}",
    }
    assert (sent["path"], sent["model"]) == ("/v1/chat/completions", "judge-model")
    assert (sent["temperature"], sent["max_tokens"]) == (0, 512)
    assert "response_format" not in sent
    assert server.keys == {f"Bearer {SECRET}"}


def test_what_a_server_does_not_take_is_not_sent(server: Server) -> None:
    judge = judge_at(
        server,
        temperature=None,
        max_tokens=77,
        token_limit="max_completion_tokens",
        json_mode=True,
        api_key_env=None,
    )
    judge(PROMPTS[:1], RESPONSES[:1])
    (sent,) = server.sent
    assert "temperature" not in sent
    assert "max_tokens" not in sent
    assert sent["max_completion_tokens"] == 77
    assert sent["response_format"] == {"type": "json_object"}
    assert SECRET not in str(server.keys)


@pytest.mark.parametrize("content", ["I would rather not say.", "", None, '{"verdict": "unsure"}'])
def test_garbage_is_unparsed_kept_and_counted_apart(server: Server, content: str | None) -> None:
    server.script = lambda name, n: Answer(content) if name == "answer-2" else SAFE
    judge = judge_at(server)
    table = judge(PROMPTS[:4], RESPONSES[:4])
    assert table["verdict"].tolist() == ["safe", "safe", None, "safe"]
    assert table["parse_ok"].tolist() == [True, True, False, True]
    rates = summary(table).set_index("outcome")
    assert rates["count"].tolist() == [0, 3, 1]
    assert rates["rate"].tolist() == [0, 1, 0.25]
    judge(PROMPTS[:4], RESPONSES[:4])
    assert Counter(server.asked)["answer-2"] == 1, "an unparsed reply was paid for, too"


def test_a_rubric_of_the_users_own_is_used(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Q {prompt} A {response} Q again {prompt}", "utf-8")
    judge_at(server, rubric=str(path))(PROMPTS[:1], RESPONSES[:1])
    assert server.sent[0]["messages"][0]["content"] == (
        "Q question-0 A answer-0 Q again question-0"
    )


def test_the_rubric_says_how_to_reply_in_a_form_that_is_read() -> None:
    from ss_lens.judges import parse_reply

    rubric = read_rubric("refusal")
    assert parse_reply(rubric.splitlines()[-1]).verdict == "safe"
    assert '"harmful"' in rubric
    assert fill(rubric, "p{x}", "{prompt}").count("{prompt}") == 1


def test_a_rubric_that_lacks_a_place_or_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("Is {response} bad?", "utf-8")
    with pytest.raises(UserError, match=r"has no \{prompt\}"):
        read_rubric(str(tmp_path / "mine.md"))
    with pytest.raises(UserError, match=r"cannot be read \(FileNotFoundError\); use refusal, or"):
        read_rubric("refusals")
    with pytest.raises(UserError, match=r"cannot be read \(IsADirectoryError\)"):
        read_rubric(str(tmp_path))


# The cache


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
    "other",
    [
        {"model": "other"},
        {"temperature": 0.5},
        {"max_tokens": 99},
        {"json_mode": True},
    ],
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


# Trouble on the way


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


def test_a_server_that_stays_silent_ends_the_judging_and_costs_nothing_done(
    server: Server,
) -> None:
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

    monkeypatch.setattr("ss_lens.judges.verdict_cache.write_json", full)
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


# Secrets


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_the_key_is_in_no_error_no_output_and_no_file(
    server: Server,
    status: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server repeats the key in its message, as some do."""
    caplog.set_level(logging.DEBUG)
    server.script = lambda name, n: SAFE if name == "answer-0" else Answer(status=status)
    judge = judge_at(server, concurrency=1)
    # Put together here, so that a traceback that quotes this test does not hold them.
    asked, answered = "-".join(["private", "question"]), "-".join(["private", "answer"])
    with pytest.raises(UserError) as caught:
        judge([asked] * 2, [f"answer-0 {answered}", f"answer-1 {answered}"])
    printed = capfd.readouterr()
    told = "".join(traceback.format_exception(caught.value))
    logged = "".join(record.getMessage() + str(record.args) for record in caplog.records)
    files = "".join(path.read_text("utf-8") for path in kept())
    assert len(kept()) == 1
    for text in (told, printed.out, printed.err, logged, files, repr(judge)):
        assert SECRET not in text
        assert asked not in text
        assert answered not in text


def test_the_key_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    monkeypatch.setenv("JUDGE_KEY", f"  {SECRET}\n")
    judge_at(server)(PROMPTS[:1], RESPONSES[:1])
    assert server.keys == {f"Bearer {SECRET}"}
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match=r"variable JUDGE_KEY is not set.*api_key_env=None"):
        judge_at(server)(PROMPTS[1:2], RESPONSES[1:2])


@pytest.mark.parametrize("value", ["two words-secret", "secret-ключ", "secret\nX-Header: 1"])
def test_a_key_that_cannot_be_one_is_not_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(UserError, match="does not hold a key") as caught:
        judge_at(server)(PROMPTS[:1], RESPONSES[:1])
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert server.asked == []


def test_a_key_in_place_of_its_variables_name_is_not_repeated() -> None:
    with pytest.raises(UserError, match="must be the name of an environment variable") as caught:
        EndpointJudge(model="m", api_key_env=SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@example.org/v1",
        f"https://example.org/v1?key={SECRET}",
        f"https://example.org/v1#{SECRET}",
    ],
)
def test_a_key_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="base_url must hold no user") as caught:
        EndpointJudge(model="m", base_url=url)
    assert SECRET not in str(caught.value)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "must begin with https://"),
        ({"base_url": "http:///v1"}, "must begin with https://"),
        ({"token_limit": "max"}, "unknown token_limit 'max'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"max_requests": -1}, "max_requests must not be negative"),
        ({"backoff_s": float("nan")}, "backoff_s must not be negative"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
        ({"temperature": -1}, "temperature must not be negative"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EndpointJudge(model="m", **settings)


def test_a_missing_client_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r'pip install "ss_lens\[judges\]"'):
        judge_at(server)(PROMPTS, RESPONSES)


def test_the_cache_key_depends_on_every_part() -> None:
    keys = {
        VerdictCache.key(judge, prompt, response)
        for judge in ({"model": "a"}, {"model": "b"})
        for prompt, response in (("a", "b"), ("ab", ""), ("", "ab"), ("b", "a"))
    }
    assert len(keys) == 8


def test_an_endpoint_judge_needs_no_torch() -> None:
    code = "import sys, ss_lens.judges; print(sorted({'torch', 'openai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
