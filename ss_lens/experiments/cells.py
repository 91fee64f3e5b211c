"""The finished cells of sweeps, by content, in one folder that many processes may share."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, disk_errors, read_json, sha256_of_json, write_json

FORMAT = 1
"""Raised whenever what is computed or stored changes; it is part of every key."""


class CellStore:
    """Parquet files below one folder: ``cells/<key>/<score>-<batch>.parquet``.

    A key is the hash of all that the cells of one group depend on but the angle. The cells that
    were computed together (the angles of one batch) are one file, which appears under its name only
    when complete: a batch is finished or not begun, so that what a killed process left undone is
    computed again in a batch of the same shape, to the same last digit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def claim(cls, folder: Path | str) -> CellStore:
        """The store in a folder that is new, empty, or of a sweep of this format.

        Raises:
            UserError: it holds something else, or cannot be written.
        """
        place = Path(folder)
        try:
            with disk_errors(place):
                place.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{place} is a file or below one; choose another folder.") from None
        cells = cls(place)
        with cells.exclusive():
            if not (place / "sweep.json").exists():
                if any(not path.name.startswith(".") for path in place.iterdir()):
                    raise UserError(f"{place} is not empty and holds no sweep; choose another.")
                write_json(place / "sweep.json", {"format": FORMAT, "ss_lens": version("ss_lens")})
            cells.check_format()
        return cells

    def check_format(self) -> None:
        """Raise a :class:`UserError` unless the folder holds sweeps of this format."""
        found = read_json(self.folder / "sweep.json", "sweep (sweep.json)").get("format")
        if found != FORMAT:
            raise UserError(
                f"the sweep at {self.folder} has format {found}, this version reads {FORMAT}; "
                "choose another folder, or remove that one."
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While one process changes what the folder says of itself."""
        with disk_errors(self.folder), FileLock(self.folder / ".lock"):
            yield

    @contextmanager
    def group(self, identity: Mapping[str, Any], *, wait: bool) -> Iterator[str | None]:
        """The key of a group that is this process' alone; ``None`` where another has it.

        Args:
            identity: all that the cells depend on but the angle, as JSON values.
            wait: until the other process is done with it, or dead.
        """
        key = self.key(identity)
        home = self._home(key)
        with disk_errors(self.folder):
            home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(home / ".lock")
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                key = None
        try:
            if key:
                for leftover in home.glob(".*.parquet.*"):  # of a process that was killed
                    shutil.rmtree(leftover)
                if not (home / "identity.json").exists():
                    write_json(home / "identity.json", dict(identity))
            yield key
        finally:
            lock.release()

    def key(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 of the identity and of the format."""
        return sha256_of_json({"format": FORMAT, **identity})

    def read(self, key: str, score: str) -> pd.DataFrame:
        """The rows of all finished cells; without any, an empty table with ``angle_deg``.

        Warns:
            UserWarning: a damaged file, whose cells then count as not computed.
        """
        batches = sorted(self._home(key).glob(f"{score}-*.parquet"))
        tables = [table for path in batches if (table := read_table(path)) is not None]
        if not tables:
            return pd.DataFrame({"angle_deg": pd.Series(dtype=float)})
        return pd.concat(tables, ignore_index=True)

    def commit(self, key: str, score: str, rows: pd.DataFrame) -> None:
        """Add cells that were computed together, all of them or none.

        Raises:
            UserError: the disk is full; what was finished before is kept.
        """
        batch = sha256_of_json(sorted({*rows["angle_deg"].tolist()}))[:16]
        write_table(self._home(key) / f"{score}-{batch}.parquet", rows)

    def _home(self, key: str) -> Path:
        return self.folder / "cells" / key


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write Parquet atomically. Bytes go through Python, so that a full disk is an ``OSError``."""
    buffer = io.BytesIO()
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(arrow, buffer, write_page_checksum=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_table(path: Path) -> pd.DataFrame | None:
    """The rows of a Parquet file; ``None``, with a warning, where it is damaged."""
    data = io.BytesIO(path.read_bytes())
    try:
        return pq.ParquetFile(data, page_checksum_verification=True).read().to_pandas()
    except (pa.ArrowException, OSError) as error:  # a checksum that differs is an OSError
        warnings.warn(f"{path} is damaged ({error}); it counts as absent.", stacklevel=3)
        return None
