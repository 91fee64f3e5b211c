"""A request to a judge's server ends at its deadline, whatever the server sends until then."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from ss_lens import UserError
from ss_lens.judges import EndpointJudge
from ss_lens.judges.transport import BoundedClient

TIMEOUT_S = 0.3
GIVES_UP_S = 1.5
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FINISHED = OK + b"Content-Length: 2\r\n\r\n{}"
EMPTY_BLOCK = b"\0\0\0\xff\xff"


def gzip_start() -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(b"") + packer.flush(zlib.Z_SYNC_FLUSH)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


DRIPS = {
    "the status line": (b"", b"H"),
    "headers": (OK, b"X: y\r\n"),
    "a header's value": (OK + b"X: ", b"y"),
    "informational replies": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the body": (OK + b"Content-Length: 1000\r\n\r\n", b"a"),
    "a body of chunks": (CHUNKED, chunk(b"a")),
    "gzip without content": (
        OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(gzip_start()),
        chunk(EMPTY_BLOCK),
    ),
    "the extension of a chunk": (CHUNKED + b"5;", b"a"),
    "trailers": (CHUNKED + chunk(b"{}") + b"0\r\n", b"X: y\r\n"),
}
"""What is sent at once, and what is sent every now and then."""


def read_request(connection: socket.socket) -> None:
    """Until the end of a body in JSON; it can come apart from its headers."""
    received = b""
    while not received.endswith(b"}"):
        part = connection.recv(65536)
        if not part:
            raise ConnectionResetError("the client has left")
        received += part


class Dripping:
    """A server that answers as a test says and then drips, until it is left or gives up."""

    def __init__(self) -> None:
        self.first, self.drop = b"", b""
        self.finished, self.finished_before, self.pause_s = FINISHED, 0, 0.0
        self.let_go = threading.Event()
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            if self.let_go.is_set():
                connection.close()
                return
            self.connections += 1
            self.threads.append(threading.Thread(target=self._answer, args=(connection,)))
            self.threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                for _ in range(self.finished_before):
                    read_request(connection)
                    self.let_go.wait(self.pause_s)
                    connection.sendall(self.finished)
                read_request(connection)
                connection.sendall(self.first)
                until = time.monotonic() + GIVES_UP_S
                while time.monotonic() < until and not self.let_go.wait(0.05):
                    connection.sendall(self.drop)
            except OSError:
                pass  # the client has left, which is what the tests are about

    def stop(self) -> None:
        self.let_go.set()
        socket.create_connection(self.listener.getsockname()).close()
        for thread in self.threads:
            thread.join()
        self.listener.close()


@pytest.fixture
def dripping() -> Iterator[Dripping]:
    server = Dripping()
    yield server
    server.stop()


@pytest.mark.parametrize("what", DRIPS)
def test_a_drip_ends_at_the_deadline(dripping: Dripping, what: str) -> None:
    dripping.first, dripping.drop = DRIPS[what]
    with BoundedClient(TIMEOUT_S) as client, pytest.raises(httpx2.TimeoutException):
        client.post(dripping.url, json={})


def test_a_drip_on_a_connection_that_is_used_again_ends_too(dripping: Dripping) -> None:
    dripping.first, dripping.drop = DRIPS["headers"]
    dripping.finished_before = 2
    with BoundedClient(TIMEOUT_S) as client:
        for _ in range(2):
            assert client.post(dripping.url, json={}).text == "{}"
            time.sleep(TIMEOUT_S)  # each request has a deadline of its own
        with pytest.raises(httpx2.TimeoutException):
            client.post(dripping.url, json={})
    assert dripping.connections == 1


def test_a_drip_through_a_proxy_ends_too(
    dripping: Dripping, monkeypatch: pytest.MonkeyPatch
) -> None:
    dripping.first, dripping.drop = DRIPS["headers"]
    monkeypatch.setenv("http_proxy", dripping.url)
    with BoundedClient(TIMEOUT_S) as client, pytest.raises(httpx2.TimeoutException):
        client.post("http://judge.invalid/", json={})
    assert dripping.connections == 1


def test_redirects_share_the_deadline(dripping: Dripping) -> None:
    location = b"Location: /again\r\nContent-Length: 0\r\n\r\n"
    dripping.finished = OK.replace(b"200 OK", b"307 Temporary Redirect") + location
    dripping.finished_before, dripping.pause_s = 1, 0.2
    with BoundedClient(TIMEOUT_S) as client, pytest.raises(httpx2.TimeoutException):
        client.post(dripping.url, json={})


def test_addresses_that_do_not_answer_share_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is full drops who knocks."""
    look_up = socket.getaddrinfo
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = full.getsockname()
        for _ in range(4):
            knocking = sockets.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(address)
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, port, *args, **settings: (
                look_up("127.0.0.1", port, *args, **settings)
                * (6 if host == "judge.invalid" else 1)
            ),
        )
        began = time.monotonic()
        with BoundedClient(TIMEOUT_S) as client, pytest.raises(httpx2.TimeoutException):
            client.post(f"http://judge.invalid:{address[1]}/", json={})
        assert time.monotonic() - began < 4 * TIMEOUT_S


def test_a_server_that_is_not_there_is_no_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with BoundedClient(TIMEOUT_S) as client, pytest.raises(httpx2.ConnectError):
        client.post(f"http://127.0.0.1:{port}/", json={})


def test_a_body_compressed_repeatedly_is_not_unpacked(dripping: Dripping) -> None:
    """Empty blocks, three times compressed: a few bytes could take minutes to yield nothing."""
    header = b"Content-Encoding: gzip, gzip\r\nContent-Length: 1000\r\n\r\n"
    dripping.first, dripping.drop = OK + header, b"a"
    with BoundedClient(TIMEOUT_S) as client, pytest.raises(httpx2.DecodingError, match="repeated"):
        client.post(dripping.url, json={})


def test_a_judge_says_that_its_server_did_not_answer_in_time(
    dripping: Dripping, monkeypatch: pytest.MonkeyPatch
) -> None:
    dripping.first, dripping.drop = DRIPS["headers"]
    judge = EndpointJudge(
        model="m", base_url=dripping.url, api_key_env=None, timeout_s=TIMEOUT_S, max_attempts=1
    )
    with pytest.raises(UserError, match=r"did not answer within 0\.3 s, at the last.*0 of 1"):
        judge(["question"], ["answer"])
