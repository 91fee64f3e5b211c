"""Files that are either wholly there or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from platformdirs import user_cache_path

from ss_lens.core.errors import UserError
from ss_lens.core.replace import leftovers, new_holder, outside, put_in_place, remove_leftovers

if TYPE_CHECKING:
    from torch import Tensor


_SURROGATES = re.compile("[\ud800-\udfff]")


def cache_root() -> Path:
    """Where models and activations are kept: ``$SS_LENS_HOME``, else the user's cache folder."""
    configured = os.environ.get("SS_LENS_HOME")
    return Path(configured).expanduser() if configured else user_cache_path("ss_lens")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces, UTF-8)."""
    text = json_text(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_replaceable(folder: Path, names: Set[str], what: str) -> None:
    """Raise a :class:`UserError` unless ``folder`` is absent or holds only files of ``names``."""
    _check_target(folder)
    with disk_errors(folder):
        present = {*folder.iterdir()} - {*leftovers(folder)} if folder.is_dir() else set()
    other = os.path.lexists(folder) and not folder.is_dir()
    if other or any(path.is_dir() or path.name not in names for path in present):
        raise UserError(
            f"{folder} holds something that is not a {what} and would be replaced; choose another "
            "folder."
        )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are absent.

    Raises:
        UserError: a part of the path is a file, or the place cannot be written.
    """
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        what = "leads nowhere" if folder.is_symlink() else "is a file or below one"
        if _kind(folder) == "other":
            what = "is a device, a pipe or a socket, where no folder can be"
        raise UserError(f"{folder} {what}; choose another folder.") from None
    except OSError as error:  # for instance below /proc
        raise UserError(
            f"{folder} cannot be made ({error.strerror}); choose another folder."
        ) from error


def check_can_be_made(folder: Path) -> None:
    """Raise unless ``folder`` is there or can be made; nothing stays of the trial.

    Raises:
        UserError: a part of the path is a file, or the place cannot be written.
    """
    absent = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written; choose another folder.")
    finally:
        for path in absent:
            with suppress(OSError):  # never made, or something is in it already
                path.rmdir()


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its name when the block ends well.

    The block may make a file or a folder there; a file replaces a file, a folder a folder. Whatever
    it leaves is removed when it raises, so ``target`` is never half-written; what a killed process
    left is removed by the next that writes beside it. See :mod:`ss_lens.core.replace`.

    Raises:
        UserError: the disk is full, ``target`` cannot be written, or is of another kind than what
            was made.
    """
    _check_target(target)
    make_folder(target.parent)
    with disk_errors(target.parent):
        remove_leftovers(target.parent)
        try:
            holder = new_holder(target)
        except FileNotFoundError as error:  # of file systems that hold no files, as /proc
            raise UserError(
                f"nothing can be written to {target.parent}; choose another folder."
            ) from error
        try:
            new = holder / target.name
            yield new
            kinds = _kind(target), _kind(new)
            if None not in kinds and kinds[0] != kinds[1]:
                raise UserError(
                    f"{target} is a {kinds[0]}, and a {kinds[1]} would be put in its place; choose "
                    "another name, or remove it."
                )
            put_in_place(new, target)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


def _check_target(target: Path) -> None:
    """Raise unless ``target`` has a name of its own and is no device, pipe or socket."""
    if target.name in ("", ".."):
        raise UserError(
            f"{str(target)!r} names a folder by its place, and what stands there cannot be "
            f"replaced; name a new one, for instance {target / 'result'}."
        )
    with disk_errors(target):
        if _kind(target) == "other":
            raise UserError(
                f"{target} is a device, a pipe or a socket, where nothing can be kept; choose "
                "another name."
            )


def _kind(path: Path) -> Literal["folder", "file", "other"] | None:
    """What is there, from one look: another writer may replace it between two."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn what a disk refuses under ``place`` (space, permission, names) into a UserError."""
    try:
        yield
    except OSError as error:
        message = _refusal(error, outside(place))
        if message is None:
            raise
        raise UserError(message) from error


def _refusal(error: OSError, place: Path) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left under {place}; what was finished is kept. Free some space, choose "
            "another folder, or set SS_LENS_HOME to one on another disk, and run it again."
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return (
            f"{place} cannot be written ({error.strerror}). Choose another folder, or set "
            "SS_LENS_HOME to one that you may write to."
        )
    if error.errno == errno.EFBIG:
        return (
            f"a file under {place} would be larger than allowed ({error.strerror}); what was "
            "finished is kept. Raise `ulimit -f`, or choose a folder on another disk."
        )
    if error.errno == errno.ENAMETOOLONG:
        return f"a name in {str(place)[:80]}… is longer than the disk allows; choose a shorter one."
    if error.errno == errno.ELOOP:
        return f"{place} leads in a circle of symbolic links; choose another path."
    if error.errno == errno.ENOTDIR:
        return f"{place} is a file or below one; choose another folder."
    return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented for reading.

    Raises:
        ValueError: a number is NaN or infinite, for which JSON has no word.
    """
    text = json_text(value, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def json_text(value: Any, **layout: Any) -> str:
    """A value as JSON that can be encoded as UTF-8: only lone surrogates are escaped."""
    text = json.dumps(value, ensure_ascii=False, **layout)
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors atomically. Bytes go through Python, so that a full disk is an ``OSError``."""
    from safetensors.torch import save

    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def read_json(path: Path, what: str, *, remedy: str = "make it again") -> Any:
    """Read a JSON file; ``what`` names it in the error when it is missing or damaged.

    Raises:
        UserError: it is absent, cannot be read, or is no JSON.
    """
    try:
        if not path.parent.exists():  # a writer may have been killed as it replaced it
            remove_leftovers(path.parent.parent)
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"there is no {what} at {path}; check the path.") from None
    except OSError as error:  # no permission, a loop of links, a name that is too long
        raise UserError(
            f"the {what} at {path} cannot be read ({error.strerror}); check the path."
        ) from error
    except RecursionError:
        raise UserError(f"the {what} at {path} is damaged (nested too deep); {remedy}.") from None
    except ValueError as error:
        raise UserError(f"the {what} at {path} is damaged ({error}); {remedy}.") from error
