"""Progress bars with the time left, shown only where a person can see them."""

from __future__ import annotations

import sys

from tqdm import tqdm

AFTER_SECONDS = 0.5
"""Work that is over sooner shows no bar."""


def progress_bar(total: int, what: str, unit: str) -> tqdm:
    """A bar on standard error; silent when that is neither a terminal nor a notebook's output.

    It appears once the work has taken :data:`AFTER_SECONDS`. Bytes (``unit="B"``) are shown as MB
    and GB.
    """
    in_notebook = "ipykernel" in sys.modules
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        delay=AFTER_SECONDS,
        leave=False,
        dynamic_ncols=True,
        disable=not (sys.stderr.isatty() or in_notebook),
    )
