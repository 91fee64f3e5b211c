"""When a judge's request may be sent, when it is repeated, and what ends the judging."""

from __future__ import annotations

import email.utils
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RETRIED_STATUSES = (408, 409, 425, 429)
"""And every status from 500 on."""


class Stopped(Exception):
    """Why the judging ends early; ``remedy`` says what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Interrupted(Exception):
    """Another request has failed for good, or the user wants to stop."""


@dataclass
class Ledger:
    """Requests and tokens spent so far. Pass one to several calls to give them one budget.

    Attributes:
        requests: sent, retries included.
        tokens: of prompts and replies together, as the server reported them.
    """

    requests: int = 0
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def open_request(self, max_requests: int | None, max_tokens: int | None) -> None:
        """Count one more request.

        Raises:
            Stopped: the budget is used up. Requests under way when the tokens ran out were already
                counted in, so tokens may exceed it by what these take.
        """
        with self._lock:
            for spent, limit, what, name in (
                (self.requests, max_requests, "requests", "max_requests"),
                (self.tokens, max_tokens, "tokens", "max_total_tokens"),
            ):
                if limit is not None and spent >= limit:
                    raise Stopped(f"the budget of {limit} {what} is used up", f"raise {name}")
            self.requests += 1

    def add_tokens(self, tokens: int) -> None:
        """Count what a reply took."""
        with self._lock:
            self.tokens += tokens


class Pace:
    """When the next request may be sent, for all requests of one call."""

    def __init__(self) -> None:
        self._resume_at = 0.0
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def rest(self, seconds: float) -> None:
        """Let no request out for so long: the server has asked for it."""
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + seconds)

    def wait(self, seconds: float = 0.0) -> None:
        """Return after so long, or later while the server rests.

        Raises:
            Interrupted: somebody has set ``stop``.
        """
        until = time.monotonic() + seconds
        while True:
            left = max(until, self._resume_at) - time.monotonic()
            if self.stop.wait(max(left, 0.0)):
                raise Interrupted
            if left <= 0:
                return


@dataclass(frozen=True)
class Failure:
    """A request that may succeed if sent again, after ``rest`` seconds if the server said so."""

    reason: str
    rest: float | None = None


def failure_of_status(
    status: int, headers: Mapping[str, str], body: Any, key_name: str | None
) -> Failure:
    """The failure behind an HTTP status.

    The server's own message is not passed on: it may repeat the answer that was judged, or the key.

    Raises:
        Stopped: sending it again would be in vain.
    """
    reason = f"the server answered with status {status}"
    # OpenAI's word for a prepaid account that is empty, sent with the status of a passing overload.
    spent = isinstance(body, Mapping) and body.get("code") == "insufficient_quota"
    if (status in RETRIED_STATUSES or status >= 500) and not spent:
        return Failure(reason, retry_after(headers))
    if spent or status == 402:
        raise Stopped(f"{reason}: the account has no credit left", "add credit")
    if status in (401, 403):
        where = "that server needs a key" if key_name is None else f"check the key in {key_name}"
        raise Stopped(f"{reason}: it does not accept the key", where)
    if status == 404:
        raise Stopped(f"{reason}: it does not know the model or the path", "check model, base_url")
    raise Stopped(
        f"{reason}: it does not accept the request",
        "check model, and try temperature=None, json_mode=False, the other token_limit or a "
        "shorter response",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3), or ``None``."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
