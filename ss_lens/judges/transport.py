"""What may come and go between a judge and its server: one origin, and replies within bounds."""

from __future__ import annotations

import time
from typing import Any

import httpx2

MAX_REPLY_BYTES = 1 << 20
MAX_REDIRECTS = 5


class Elsewhere(httpx2.RequestError):
    """The server redirects to another origin, which was not asked; ``origin`` names it."""

    def __init__(self, origin: str) -> None:
        super().__init__(f"redirect to {origin}")
        self.origin = origin


class TooLong(httpx2.RequestError):
    """A reply exceeds ``MAX_REPLY_BYTES``."""


class BoundedClient(httpx2.Client):
    """An HTTP client that sends texts to the origin that was named, and reads so much for so long.

    The timeout of ``httpx2`` is for one read, so a server that sends a byte now and then could hold
    a request for ever; here it is also for a whole body.

    Args:
        timeout_s: seconds without a byte, and seconds for the body of a reply.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout=timeout_s)
        self._timeout_s = timeout_s

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and read its reply, following redirects within the origin.

        Raises:
            Elsewhere: a redirect leads to another origin; nothing was sent there.
            TooLong: the reply is too long.
            httpx2.ReadTimeout: the body takes too long.
        """
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
        deadline, body = time.monotonic() + self._timeout_s, bytearray()
        try:
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_REPLY_BYTES:
                    raise TooLong(f"more than {MAX_REPLY_BYTES} bytes", request=response.request)
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the body takes too long", request=response.request)
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
