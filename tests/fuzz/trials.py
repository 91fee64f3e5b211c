"""A trial: a whole artifact, damaged once, must be refused in one line or served as it was."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ss_lens import UserError
from tests.fuzz.mutations import damage

SECONDS = 60


@dataclass(frozen=True)
class Kind:
    """A kind of artifact.

    Attributes:
        name: of the kind.
        whole: a folder with one that is undamaged.
        serve: what is read from a folder, as text that two equal readings share.
        sealed: whether we wrote it, so that a reading is either refused or equal to the undamaged
            one; what users write may say something else after an edit, but the same every time.
    """

    name: str
    whole: Path
    serve: Callable[[Path], str]
    sealed: bool


class Hang(Exception):
    """A reading that takes longer than :data:`SECONDS`."""


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, folder: Path) -> str:
    """``refused``, or what is served; whatever else is raised is the test's failure."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), limited_time():
        warnings.simplefilter("ignore")
        try:
            return kind.serve(folder)
        except UserError as error:
            message = str(error)
            assert "\n" not in message, f"not one line: {message!r}"
            assert message
            return "refused"


def run_trials(kind: Kind, place: Path, seeds: range) -> Counter[str]:
    """How often damage was refused, harmless, or (where users write) read as another value."""
    expected = outcome(kind, kind.whole)
    assert expected != "refused", f"the undamaged {kind.name} is refused"
    counts: Counter[str] = Counter()
    for seed in seeds:
        folder = place / str(seed)
        shutil.copytree(kind.whole, folder, symlinks=True)
        how = damage(folder, random.Random(seed))
        told = f"{kind.name}, seed {seed}: {how}"
        print(told)  # the last line of these belongs to whatever is raised below
        served = outcome(kind, folder)
        again = served if served in ("refused", expected) else outcome(kind, folder)
        if served == "refused":
            counts["refused"] += 1
        elif served == expected:
            counts["as it was"] += 1
        else:
            assert not kind.sealed, f"{told}: served something else:\n{served}\n{expected}"
            assert again == served, f"{told}: two readings differ"
            counts["another value"] += 1
        shutil.rmtree(folder, ignore_errors=True)
    return counts
