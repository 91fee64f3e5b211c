"""Progress bars with the time left, shown only where a person can see them."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str) -> tqdm:
    """A bar on standard error; silent when that is neither a terminal nor a notebook's output."""
    in_notebook = "ipykernel" in sys.modules
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        disable=not (sys.stderr.isatty() or in_notebook),
    )
