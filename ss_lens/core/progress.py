"""Progress bars with the time left, shown only where a person can see them."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm

AFTER_SECONDS = 0.5
"""Work that is over sooner shows no bar."""


def progress_bar(total: int, what: str, unit: str) -> tqdm:
    """A bar on standard error; silent when that is neither a terminal nor a notebook's output.

    It appears once the work has taken :data:`AFTER_SECONDS`. Bytes (``unit="B"``) are shown as MB
    and GB. Where tqdm's own variable ``TQDM_DISABLE`` is set there is none.
    """
    seen = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        delay=AFTER_SECONDS,
        leave=False,
        dynamic_ncols=True,
        disable=not seen or "TQDM_DISABLE" in os.environ,
    )
