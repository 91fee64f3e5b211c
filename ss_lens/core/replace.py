"""How a finished file or folder takes its place, and how what killed writers left is cleared away.

A writer works in a *holder*: a hidden folder beside the target, named by host and process. A file
takes its place by one ``rename``. A folder that replaces another is exchanged with it in one step
(``renameat2`` of Linux); a reader finds the old one or the new one, and racing writers all succeed.
Where the system or the file system cannot exchange (macOS, NFS), two renames do it: for that
instant a reader may find nothing. A writer killed in that instant leaves both folders in its
holder, and :func:`remove_leftovers` puts the new one, which is complete, in its place.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

WEEK = 7 * 24 * 3600.0
"""After this many seconds a holder counts as left behind, whichever host wrote it."""

_HOLDER = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[a-z0-9_]{8}", re.DOTALL)
_OLD_HOLDER = re.compile(r"\..+\.[a-z0-9_]{8}", re.DOTALL)  # before they named their process
_AT_CWD, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def new_holder(target: Path) -> Path:
    """An empty hidden folder beside ``target``, named by this host and process."""
    name = os.fsdecode(os.fsencode(target.name)[:200])  # the whole must fit into 255 bytes
    prefix = f".{name}.{_host()}-{os.getpid()}-"
    return Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))


def outside(path: Path) -> Path:
    """The place that a user knows: of what lies in a holder, the folder around the holder."""
    parts = path.parts
    held = next((i for i, part in enumerate(parts) if _HOLDER.fullmatch(part)), len(parts))
    return Path(*parts[:held])


def put_in_place(new: Path, target: Path) -> None:
    """Let ``new``, which lies in its holder, take the name of ``target``, for good.

    Both are on disk before the name changes, so that a power cut leaves the old one or the new one.
    """
    nested = any(_HOLDER.fullmatch(part) for part in target.parts)  # its own holder will see to it
    if not nested:
        _sync(new)
    while True:  # each further round means that another writer was faster
        try:
            if not target.is_dir():
                os.replace(new, target)
            elif not _exchange(new, target):
                os.replace(target, new.with_name(f".{new.name}.old"))
                os.replace(new, target)
            break
        except FileNotFoundError:
            if not os.path.lexists(new):
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = new.with_name(f".{new.name}.old")
        shutil.rmtree(old, ignore_errors=True)
    if not nested:
        _sync_folder(target.parent)


def remove_leftovers(folder: Path, *, all_of_them: bool = False) -> None:
    """Clear away the holders of killed writers in ``folder``; finish what one had all but done.

    A holder of this host is one where its process is gone, a holder of another host where it was
    not touched for a week.

    Args:
        folder: where to look, not below it.
        all_of_them: also holders of live processes. Only for one who knows that none is writing,
            by holding a lock.
    """
    for path in leftovers(folder):
        if all_of_them or _abandoned(path):
            _finish(path)
            shutil.rmtree(path, ignore_errors=True)


def holds_nothing(folder: Path) -> bool:
    """Whether ``folder`` is absent or holds nothing but what killed writers left."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and {*folder.iterdir()} <= {*leftovers(folder)}


def leftovers(folder: Path) -> list[Path]:
    """The holders in a folder, of live and of killed writers."""
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(".")
                and (_HOLDER.fullmatch(entry.name) or _is_old_holder(entry))
                and entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _is_old_holder(entry: os.DirEntry[str]) -> bool:
    """A holder of an earlier version: it has one thing in it, under the name that it bears."""
    if not _OLD_HOLDER.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
        return False
    with suppress(OSError):
        return {*os.listdir(entry.path)} <= {entry.name[1:-9], "replaced"}
    return False


def _abandoned(holder: Path) -> bool:
    named = _HOLDER.fullmatch(holder.name)
    if not named:  # an earlier version's, which does not say whose it is
        return False
    if named[1] == _host():
        return not _alive(int(named[2]))
    with suppress(OSError):
        touched = [path.stat().st_mtime for path in (holder, *holder.iterdir())]
        return time.time() - max(touched) > WEEK
    return False


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@cache
def _host() -> str:
    """Stands for the machine and its space of process numbers, which containers have their own."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _finish(holder: Path) -> None:
    """Put the new folder in place where its writer was killed between the two renames."""
    with suppress(OSError):
        for old in holder.glob(".*.old"):
            new = holder / old.name[1 : -len(".old")]
            target = holder.parent / new.name
            if new.exists() and not os.path.lexists(target):
                os.replace(new, target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; ``False`` where that cannot be done here."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))


@cache
def _renameat2() -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _sync(path: Path) -> None:
    """Have a file, or a folder with all that is in it, written to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            if not child.is_symlink():
                _sync(child)
        _sync_folder(path)
    elif path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems have no such thing for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
