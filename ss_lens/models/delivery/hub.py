"""A pinned file from a repository on the Hub, tried quickly and resumed where it was cut off."""

from __future__ import annotations

import http.client
import os
import threading
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

from ss_lens.core.errors import Unavailable, UserError, first_line
from ss_lens.core.files import disk_errors
from ss_lens.core.progress import progress_bar
from ss_lens.core.resources import check_disk
from ss_lens.models.sources import HubFile, PinnedFile

PATIENCE = 5.0
"""Seconds after which a Hub that does not answer is given up, and a download that stands still."""


def bring_from_hub(model: str, source: HubFile, file: PinnedFile, partial: Path) -> None:
    """Have the file at ``partial``, in its pinned size; its digest is the caller's to check.

    What a run that was cut off left there is gone on with.

    Raises:
        Unavailable: the Hub is switched off, does not answer, or has another file.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _unreached(source, "HF_HUB_OFFLINE is set")
    if partial.exists() and partial.stat().st_size > file.n_bytes:
        partial.unlink()
    begun = partial.stat().st_size if partial.exists() else 0
    if begun == file.n_bytes:
        return
    url = f"{constants.ENDPOINT}/{source.repository}/resolve/main/{source.name}"
    try:
        with closing(_opened(url, begun)) as answer:
            total = _total(answer, begun)
            if total != file.n_bytes:
                raise _unreached(source, f"the file there has {total} bytes, not {file.n_bytes}")
            check_disk(file.n_bytes - begun, partial.parent, f"fetching {model}")
            _write(answer, model, file, partial, begun)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, UserError):  # of the disk, or said already
            raise
        reason = getattr(error, "reason", None)  # urllib wraps what the socket raised
        cause = reason if isinstance(reason, OSError) else error
        raise _unreached(source, first_line(cause)) from error


def _opened(url: str, begun: int) -> Any:
    """The answer of the Hub, within a time that holds for the resolver of names too."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"})
    found: list[Any] = []

    def open_it() -> None:
        try:
            found.append(urllib.request.urlopen(request, timeout=PATIENCE))
        except (OSError, http.client.HTTPException, ValueError) as error:
            found.append(error)

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    thread.join(2 * PATIENCE)
    if not found:
        raise TimeoutError(f"no answer within {2 * PATIENCE:.0f} s")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _total(answer: Any, begun: int) -> int:
    """The size of the whole file, by the head of the answer."""
    if answer.status == 206:
        return int(answer.headers["Content-Range"].rpartition("/")[2])
    if begun:
        raise ValueError("it cannot go on with a download")
    return int(answer.headers["Content-Length"] or -1)


def _write(answer: Any, model: str, file: PinnedFile, partial: Path, begun: int) -> None:
    with progress_bar(file.n_bytes, f"fetching {model}", "B") as bar, disk_errors(partial.parent):
        bar.initial = bar.n = begun
        with partial.open("ab") as out:
            while block := answer.read(min(1 << 20, file.n_bytes - out.tell())):
                out.write(block)
                bar.update(len(block))
            out.flush()
            os.fsync(out.fileno())
            if out.tell() != file.n_bytes:
                raise ConnectionError(f"the download ended after {out.tell()} bytes")


def _unreached(source: HubFile, why: str) -> Unavailable:
    return Unavailable(
        f"{source} could not be fetched from the Hub: {why}. Connect to the Hub, or "
        "check HF_ENDPOINT."
    )
