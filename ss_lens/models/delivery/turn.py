"""One process at a time fetches a model; the others say for whom and for what they wait."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ss_lens.core.files import atomic_path


def owner_of(folder: Path) -> Path:
    """Where the process that fetches ``folder`` says who it is."""
    return folder.with_name(f"{folder.name}.fetching")


@contextmanager
def turn_to_fetch(folder: Path, model: str) -> Iterator[None]:
    """While this process alone fetches ``folder``.

    Where another one does, a line on standard error says which, and this one waits until it is done
    or dead; Ctrl-C ends the waiting at once.
    """
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"waiting for {_owner(folder)}, which is fetching {model}; Ctrl-C stops waiting, and "
            "leaves it at work",
            file=sys.stderr,
        )
        lock.acquire()
    owner = owner_of(folder)
    try:
        with atomic_path(owner) as temporary:
            temporary.write_text(f"process {os.getpid()} on {platform.node()}", "utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        return owner_of(folder).read_text("utf-8")
    except FileNotFoundError:  # of an earlier version, or in its first instant
        return "another process"
