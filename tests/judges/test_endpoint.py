"""A judge behind an endpoint asks what it says it asks, and keeps its key to itself."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ss_lens import UserError
from ss_lens.judges import EndpointJudge, summary
from ss_lens.judges.rubric import fill, read_rubric
from tests.judges.served import (
    HARMFUL,
    PROMPTS,
    RESPONSES,
    SAFE,
    SECRET,
    Answer,
    Server,
    judge_at,
    kept,
)


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


# Secrets


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_the_key_is_in_no_error_no_output_and_no_file(
    server: Server, status: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
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


def test_an_endpoint_judge_needs_no_torch() -> None:
    code = "import sys, ss_lens.judges; print(sorted({'torch', 'openai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
