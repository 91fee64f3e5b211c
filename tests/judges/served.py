"""A server on 127.0.0.1 that speaks the chat-completions interface: a test says how it answers."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ss_lens.core.files import cache_root
from ss_lens.judges import EndpointJudge

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
    drips: bool = False


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
        encoding = "latin-1" if "Content-Encoding" in answer.headers else "utf-8"
        payload = (answer.body or json.dumps(body)).encode(encoding)
        self.send_response(answer.status)
        for header, value in answer.headers.items():
            self.send_header(header, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if answer.drips:
            for byte in payload:
                self.wfile.write(bytes([byte]))
                if self.server.let_go.wait(0.2):
                    return
        else:
            self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


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


def serving() -> Iterator[Server]:
    """A server while a fixture lasts."""
    started = Server()
    thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield started
    started.let_go.set()
    started.shutdown()
    started.server_close()
    thread.join()
