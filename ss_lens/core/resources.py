"""What this machine has left of memory and disk, asked before something large is begun."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from ss_lens.core.errors import Unavailable
from ss_lens.core.replace import outside

_ROOT = Path("/")


def free_memory() -> int | None:
    """Bytes that this process may still take without swapping; ``None`` where no one says.

    The least of what the kernel calls available, what the control groups leave, and what
    ``ulimit -v`` leaves. Where the system does not say what is available (macOS), all its memory.
    """
    known = [
        left for left in (_available(), _left_by_groups(), _left_by_limit()) if left is not None
    ]
    return max(0, min(known)) if known else None


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Raise unless ``needed`` bytes of memory are free.

    Raises:
        Unavailable: fewer are.
    """
    free = free_memory()
    if free is not None and free < needed:
        raise Unavailable(
            f"{what} needs {in_gb(needed)} of memory, and {in_gb(free)} are free here; {remedy}."
        )


ANOTHER_HOME = "set SS_LENS_HOME to a folder on another disk"
"""What helps where the user's cache has too little room."""


def check_disk(needed: int, folder: Path, what: str, *, instead: str = ANOTHER_HOME) -> None:
    """Raise unless ``needed`` bytes are free where ``folder`` is or will be.

    Args:
        needed: in bytes.
        folder: need not exist yet.
        what: needs them.
        instead: of freeing some space.

    Raises:
        Unavailable: fewer are.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise Unavailable(
            f"{what} needs {in_gb(needed)} of disk, and {in_gb(free)} are free under "
            f"{outside(folder)}; free some space, or {instead}."
        )


def in_gb(n_bytes: int | float) -> str:
    """A size as text: ``1.1 GB``, or in MB below one GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _available() -> int | None:
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _text("proc/meminfo"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_by_groups() -> int | None:
    """What the control groups of this process leave, of either version; caches do not count."""
    left = []
    with suppress(OSError):
        for line in _text("proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                top = "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            group = Path(path.lstrip("/"))
            for folder in (group, *group.parents):  # a container sees its own group as the top
                with suppress(OSError, ValueError):
                    left.append(_left_by_group(Path(top) / folder, *names))
    return min(left) if left else None


def _left_by_group(folder: Path, limit: str, usage: str, cache: str) -> int:
    allowed = int(_text(folder / limit))  # the word "max" is no number: no limit
    found = re.search(rf"^{cache} (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
    return allowed - int(_text(folder / usage)) + (int(found[1]) if found else 0)


def _left_by_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    with suppress(OSError):
        return limit - int(_text("proc/self/statm").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _text(path: str | Path) -> str:
    return (_ROOT / path).read_text("utf-8")
