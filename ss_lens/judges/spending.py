"""What a paid judge may spend, and how its requests keep off a server that asks for a rest."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


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
