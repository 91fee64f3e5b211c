"""Progress bars with the time left, shown only where a person can see them."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str) -> tqdm:
    """A bar on standard error; silent when that is neither a terminal nor a notebook's output.

    Bytes (``unit="B"``) are shown as MB and GB.
    """
    in_notebook = "ipykernel" in sys.modules
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        leave=False,
        dynamic_ncols=True,
        disable=not (sys.stderr.isatty() or in_notebook),
    )
