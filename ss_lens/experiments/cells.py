"""The finished cells of sweeps, by content, in one folder that many processes may share."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ss_lens.core.errors import UserError, first_line
from ss_lens.core.files import (
    atomic_path,
    disk_errors,
    make_folder,
    read_json,
    sha256_of_json,
    write_json,
)
from ss_lens.core.replace import remove_leftovers
from ss_lens.geometry.strengths import reduced
from ss_lens.scoring.registry import ANSWERS, ROW, columns_of, stored_name

FORMAT = 1
"""Raised whenever the answers or the way of storing change; it is part of every key.

What a single score computes has a version of its own (:class:`ss_lens.scoring.registry.Score`).
"""


_OWN = frozenset({"sweep.json", "cells", "result", "logs", "ablations", "report.html"})
_RESUME = "run the same command again, which writes it anew and keeps what is finished"


class CellStore:
    """Parquet files below one folder: ``cells/<key>/<score>-<batch>-<digest>.parquet``.

    A key is the hash of all that the cells of one group depend on but the angle. The cells that
    were computed together (the angles of one batch) are one file, which appears under its name only
    when complete: a batch is finished or not begun, so that what a killed process left undone is
    computed again in a batch of the same shape, to the same last digit. The digest is of the bytes
    and of the place, so that a changed or exchanged file counts as not computed. Files of earlier
    versions have none; their pages' checksums and their columns are checked instead.
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
        make_folder(place)
        cells = cls(place)
        with cells.exclusive():
            remove_leftovers(place)
            if not (place / "sweep.json").exists():
                if any(not path.name.startswith(".") for path in place.iterdir()):
                    raise UserError(f"{place} is not empty and holds no sweep; choose another.")
                cells._write_format()
            elif cells._format_is_damaged():
                warnings.warn(
                    f"{place / 'sweep.json'} is damaged and is written again; the cells say for "
                    "themselves what they are.",
                    stacklevel=3,
                )
                cells._write_format()
            cells.check_format()
        return cells

    def check_format(self) -> None:
        """Raise a :class:`UserError` unless the folder holds sweeps of this format."""
        found = read_json(self.folder / "sweep.json", "sweep (sweep.json)", remedy=_RESUME)
        known = found.get("format") if isinstance(found, dict) else None
        if known != FORMAT:
            raise UserError(
                f"the sweep at {self.folder} has format {known}, this version reads {FORMAT}; "
                "choose another folder, or remove that one."
            )

    def _write_format(self) -> None:
        said = {"format": FORMAT, "ss_lens": version("ss_lens")}
        write_json(self.folder / "sweep.json", said)

    def _format_is_damaged(self) -> bool:
        """Whether ``sweep.json`` says no format, in a folder that is a sweep's by all the rest."""
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if "cells" not in names or names - _OWN:
            return False
        try:
            found = read_json(self.folder / "sweep.json", "sweep (sweep.json)")
        except UserError:
            return True
        return not isinstance(found, dict) or type(found.get("format")) is not int

    def dtype(self, asked: str, here: str) -> str:
        """The dtype that all processes which share the folder take for ``asked``.

        The first one decides, since what ``auto`` and ``fast`` mean depends on the machine.

        Args:
            asked: the name that is to be decided.
            here: what it means on this machine.
        """
        with self.exclusive():
            path = self.folder / "sweep.json"
            said = read_json(path, "sweep (sweep.json)", remedy=_RESUME)
            decided = said.get("dtypes", {})
            if asked not in decided:
                decided = {**decided, asked: here}
                write_json(path, {**said, "dtypes": decided})
            return decided[asked]

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
        with self.held(key, wait=wait) as mine:
            identified = self._home(key) / "identity.json"
            if mine and not identified.exists():
                write_json(identified, dict(identity))
            yield key if mine else None

    @contextmanager
    def held(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """While a group is this process' alone; ``False`` where another has it."""
        home = self._home(key)
        with disk_errors(self.folder):
            home.mkdir(parents=True, exist_ok=True)
            lock, mine = FileLock(home / ".lock"), True
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                mine = False
        try:
            if mine:
                remove_leftovers(home, all_of_them=True)  # of killed processes; the lock is held
            yield mine
        finally:
            lock.release()

    def keys(self) -> list[str]:
        """Of all groups that are there."""
        return sorted(path.name for path in (self.folder / "cells").glob("*") if path.is_dir())

    def key(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 of the identity and of the format."""
        return sha256_of_json({"format": FORMAT, **identity})

    def read(self, key: str, score: str) -> pd.DataFrame:
        """The rows of all finished cells; without any, an empty table with ``angle_deg``.

        Warns:
            UserWarning: a damaged file, whose cells then count as not computed.
        """
        tables = self.batches(key, score)
        if not tables:
            return pd.DataFrame({"angle_deg": pd.Series(dtype=float)})
        rows = pd.concat(tables, ignore_index=True)
        return rows.assign(angle_deg=rows["angle_deg"].astype(float).map(reduced))

    def batches(self, key: str, score: str) -> list[pd.DataFrame]:
        """The rows of each file of finished cells; damaged ones are passed over, with a warning."""
        found = map(_read_batch, self._batches(key, stored_name(score)))
        return [table for table in found if table is not None]

    def discard(self, key: str, score: str, chosen: Callable[[pd.DataFrame], bool]) -> None:
        """Remove the files of finished cells that are chosen by their rows."""
        for path in self._batches(key, stored_name(score)):
            if (rows := _read_batch(path)) is not None and chosen(rows):
                path.unlink()

    def commit(self, key: str, score: str, rows: pd.DataFrame) -> None:
        """Add cells that were computed together, all of them or none.

        They take the place of an earlier file of the same angles, and of damaged ones.

        Raises:
            UserError: the disk is full; what was finished before is kept.
        """
        data, score = _parquet(rows), stored_name(score)
        batch = f"{score}-{sha256_of_json(sorted({*rows['angle_deg'].tolist()}))[:16]}"
        home = self._home(key)
        path = home / f"{batch}-{_digest(key, score, data)}.parquet"
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        for other in self._batches(key, score):
            if other != path and (other.name.startswith(batch) or _changed(other)):
                other.unlink(missing_ok=True)

    def _batches(self, key: str, score: str) -> list[Path]:
        found = self._home(key).glob(f"{score}-*.parquet")
        return sorted(path for path in found if path.is_file())

    def _home(self, key: str) -> Path:
        return self.folder / "cells" / key


def at_angles_in_order(rows: pd.DataFrame, angles_deg: Sequence[float]) -> pd.DataFrame:
    """The rows at these angles, by prompt and then as the angles stand; others may be there too.

    Without working locks two processes may have computed a cell in batches of their own; of
    repeated rows the first counts.
    """
    order = {angle: place for place, angle in enumerate(angles_deg)}
    found = rows.loc[rows["angle_deg"].isin([*order])]
    if found.empty:
        return found
    found = found.drop_duplicates([*ROW])
    found = found.assign(place=found["angle_deg"].map(order))
    return found.sort_values(["prompt_index", "place"], ignore_index=True).drop(columns="place")


def unfinished_angles(
    rows: pd.DataFrame, angles_deg: Sequence[float], n_prompts: int
) -> list[float]:
    """Those of the angles at which not every prompt has its row."""
    known = Counter(at_angles_in_order(rows, angles_deg)["angle_deg"].tolist())
    return [angle for angle in angles_deg if known[angle] < n_prompts]


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write Parquet atomically, and return its SHA-256."""
    data = _parquet(table)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)  # through Python, so that a full disk is an OSError
    return hashlib.sha256(data).hexdigest()


def read_table(path: Path, sha256: str | None = None) -> pd.DataFrame | None:
    """The rows of a Parquet file; ``None``, with a warning, where it is absent or damaged.

    Args:
        path: the file.
        sha256: of its bytes; ``None`` for a file of an earlier version, which has its pages'
            checksums alone.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return _damaged(path, error)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        return _damaged(path, "its checksum differs")
    return _parsed(path, data)


def digest_of_text(text: str) -> str:
    """What stands for an answer beside the numbers that were computed from it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read_batch(path: Path) -> pd.DataFrame | None:
    """The rows of a file of finished cells."""
    data, score = path.read_bytes(), path.name.split("-")[0]
    if _expected_digest(path) is not None:
        return _damaged(path, "its checksum differs") if _changed(path) else _parsed(path, data)
    rows = _parsed(path, data)
    columns = {"response"} if score == ANSWERS else {*columns_of(score.split(".")[0])}
    needed = {"angle_deg"} | columns
    if rows is None or not needed <= {*rows.columns}:
        return None if rows is None else _damaged(path, "its columns are not those of the score")
    return rows


def _changed(path: Path) -> bool:
    """Whether a file of finished cells differs from what its name says."""
    expected, score = _expected_digest(path), path.name.split("-")[0]
    return expected not in (None, _digest(path.parent.name, score, path.read_bytes()))


def _expected_digest(path: Path) -> str | None:
    parts = path.name.removesuffix(".parquet").split("-")
    return parts[2] if len(parts) > 2 else None


def _digest(key: str, score: str, data: bytes) -> str:
    return hashlib.sha256(f"{key}\n{score}\n".encode() + data).hexdigest()[:16]


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(arrow, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _parsed(path: Path, data: bytes) -> pd.DataFrame | None:
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        return file.read().to_pandas()
    # A checksum that differs is an OSError; the others come of a changed schema.
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        return _damaged(path, first_line(error))


def _damaged(path: Path, why: object) -> None:
    warnings.warn(f"{path} is damaged ({why}); it counts as absent.", stacklevel=4)
