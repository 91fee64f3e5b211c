"""What may come and go between a judge and its server: one origin, and replies within bounds."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2

MAX_REPLY_BYTES = 1 << 20
MAX_REDIRECTS = 5
_WRITTEN_AT_ONCE = 4096


class Elsewhere(httpx2.RequestError):
    """The server redirects to another origin, which was not asked; ``origin`` names it."""

    def __init__(self, origin: str) -> None:
        super().__init__(f"redirect to {origin}")
        self.origin = origin


class TooLong(httpx2.RequestError):
    """A reply exceeds ``MAX_REPLY_BYTES``."""


class BoundedClient(httpx2.Client):
    """An HTTP client that sends texts to the origin that was named, and reads so much for so long.

    The timeout of ``httpx2`` is for one operation on a socket, so a server that sends a byte now
    and then could hold a request for ever; here it is for the whole request, redirects included.
    Only the look-up of the server's name keeps the limits of the system.

    Args:
        timeout_s: seconds from connecting to the last byte of the reply.
    """

    def __init__(self, timeout_s: float) -> None:
        # Without max_connections no request waits for another's connection.
        super().__init__(timeout=timeout_s, limits=httpx2.Limits(max_keepalive_connections=20))
        self._timeout_s = timeout_s
        self._deadline = _Deadline()
        backend = _Backend(self._deadline)
        for transport in (self._transport, *self._mounts.values()):
            if transport is not None:  # None: a host that the proxies leave out
                assert isinstance(transport, httpx2.HTTPTransport)
                # The pool takes a backend, and the transport that makes the pool takes none.
                transport._pool._network_backend = backend

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and read its reply, following redirects within the origin.

        Raises:
            Elsewhere: a redirect leads to another origin; nothing was sent there.
            TooLong: the reply is too long.
            httpx2.TimeoutException: the request takes too long.
            httpx2.DecodingError: the body cannot be decompressed, or is compressed repeatedly.
        """
        self._deadline.at = time.monotonic() + self._timeout_s
        options |= {"stream": True, "follow_redirects": False}
        asked = request
        for _ in range(MAX_REDIRECTS + 1):
            response = super().send(asked, **options)
            if response.next_request is None:
                return self._read(response)
            response.close()
            asked = response.next_request
            if _origin(asked.url) != _origin(request.url):
                raise Elsewhere(_origin(asked.url))
        raise httpx2.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects", request=request)

    def _read(self, response: httpx2.Response) -> httpx2.Response:
        """The same response with its body in memory, decompressed."""
        body = bytearray()
        try:
            # A few bytes, compressed repeatedly, can take for ever to yield nothing.
            if len(response.headers.get_list("content-encoding", split_commas=True)) > 1:
                raise httpx2.DecodingError("compressed repeatedly", request=response.request)
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_REPLY_BYTES:
                    raise TooLong(f"more than {MAX_REPLY_BYTES} bytes", request=response.request)
        finally:
            response.close()
        headers = response.headers.copy()
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        return httpx2.Response(
            response.status_code,
            headers=headers,
            content=bytes(body),
            request=response.request,
            extensions=response.extensions,
        )


def _origin(url: httpx2.URL) -> str:
    port = "" if url.port is None else f":{url.port}"
    return f"{url.scheme}://{url.host}{port}"


class _Deadline(threading.local):
    """When the request under way in this thread must be over."""

    at = 0.0

    def left(self) -> float:
        """Seconds until then, above 0.

        Raises:
            httpcore2.ReadTimeout: there are none.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the request takes too long")
        return left


class _Backend(httpcore2.NetworkBackend):
    """Opens connections on which each operation may take the time that is left."""

    def __init__(self, deadline: _Deadline) -> None:
        self._deadline = deadline
        self._backend = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first of the host's addresses that accepts."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        failure = httpcore2.ConnectError("the name has no address")
        for *_, address in found:
            numeric, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
            try:
                stream = self._backend.connect_tcp(
                    numeric, port, self._deadline.left(), local_address, socket_options
                )
            except httpcore2.ConnectError as error:
                failure = error
            else:
                return _Stream(stream, self._deadline)
        raise failure


class _Stream(httpcore2.NetworkStream):
    """A connection on which each operation may take the time that is left."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes, as soon as there are any."""
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write in pieces that a socket takes whole, since each part has a timeout of its own."""
        for start in range(0, len(buffer), _WRITTEN_AT_ONCE):
            piece = buffer[start : start + _WRITTEN_AT_ONCE]
            self._stream.write(piece, self._deadline.left())

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """The same connection, encrypted."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _Stream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What the connection knows of itself."""
        return self._stream.get_extra_info(info)
