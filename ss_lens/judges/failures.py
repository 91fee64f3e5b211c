"""What went wrong with a request: worth another try, or for good."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ss_lens.judges.spending import Stopped

RETRIED_STATUSES = (408, 409, 425, 429)
"""And every status from 500 on."""


@dataclass(frozen=True)
class Failure:
    """A request that may succeed if sent again, after ``rest`` seconds if the server said so."""

    reason: str
    rest: float | None = None


def of_status(status: int, headers: Mapping[str, str], body: Any, key_name: str | None) -> Failure:
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
