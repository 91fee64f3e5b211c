"""Files that are either wholly there or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from ss_lens.core.errors import UserError

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
    """Raise a :class:`UserError` unless ``folder`` is absent or holds nothing but ``names``."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or present - names:
        raise UserError(
            f"{folder} holds something that is not a {what} and would be replaced; choose another "
            "folder."
        )


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its name when the block ends well.

    The block may make a file or a folder there. Whatever it leaves is removed when it raises, so
    ``target`` is never half-written; a full disk is reported as a :class:`UserError`.
    """
    with disk_errors(target.parent):
        if target.parent.exists() and not target.parent.is_dir():
            raise UserError(f"{target.parent} is a file, so nothing can be put below it.")
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield holder / target.name
            if target.is_dir():
                os.replace(target, holder / "replaced")
            os.replace(holder / target.name, target)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission under ``place`` into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left under {place}; what was finished is kept. Free some space, choose "
                "another folder, or set SS_LENS_HOME to one on another disk, and run it again."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(
                f"{place} cannot be written ({error.strerror}). Choose another folder, or set "
                "SS_LENS_HOME to one that you may write to."
            ) from error
        raise


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
