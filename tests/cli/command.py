"""A command of ss-lens as a shell sees it: exit code, output, one line for a mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Finished(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


CommandLine = Callable[..., Finished]


def only_errors(finished: Finished) -> Finished:
    """Without the lines in which the store says what it did before the mistake showed."""
    kept = [x for x in finished.err.splitlines() if not x.startswith(("captured ", "served "))]
    return finished._replace(err="\n".join(kept))


def assert_one_clear_line(finished: Finished, *fragments: str) -> None:
    assert finished.code == 2, finished.err
    assert "Traceback" not in finished.err
    lines = finished.err.strip().splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) == 1, finished.err
    assert finished.out == ""
    for fragment in fragments:
        assert fragment in lines[-1]
