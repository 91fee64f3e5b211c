"""A content-addressed store of activations: nothing is captured twice, nothing is half-written."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ss_lens.activations.manifest import FORMAT, NAME, Manifest
from ss_lens.activations.spec import CaptureSpec
from ss_lens.core.checks import check_is, check_path
from ss_lens.core.errors import UserError
from ss_lens.core.files import cache_root, disk_errors, make_folder
from ss_lens.core.replace import new_holder, remove_leftovers

if TYPE_CHECKING:
    from ss_lens.activations.activations import Activations
    from ss_lens.activations.shards import ComputeShard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreEntry:
    """One set of activations in the store, as ``ss-lens store ls`` lists it."""

    key: str
    spec: CaptureSpec
    shards_present: int
    shards_total: int
    n_bytes: int


class Store:
    """Activations on disk, each set in a folder named by the hash of its specification.

    A set is split into shards of prompts, each a file that appears under its name only when it is
    complete, so a killed capture resumes where it stopped. What is served was checked against the
    specification that was asked for; see :mod:`ss_lens.activations.manifest`. Reading needs no lock
    and writes nothing, so a read-only store serves what it holds. A lock lets one process capture
    while others that want the same set wait. Listing and removing need no torch.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        if root is not None:
            check_path("root", root)
        self.root = Path(root) if root is not None else cache_root() / "store"

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def fetch(
        self, spec: CaptureSpec, plan: Sequence[Sequence[int]], compute: ComputeShard
    ) -> Activations:
        """The activations of ``spec``; shards that are absent or damaged are computed.

        Args:
            spec: what is wanted.
            plan: the prompt indices (positive prompts first) of each shard.
            compute: called once per shard that the store does not have.

        Warns:
            UserWarning: what was damaged, and is captured again.
        """
        from ss_lens.activations.activations import stacked
        from ss_lens.activations.shards import claimed, completed, place_of, read_whole

        folder, wanted = self.root / spec.key, Manifest.of(spec, plan)
        stored = read_whole(folder, wanted)
        if stored is not None:
            logger.info("served from the store, nothing captured: %s", place_of(spec))
            return stacked(stored, spec)
        with self._lock(folder):
            manifest, renewed = claimed(folder, wanted)
            return stacked(completed(folder, manifest, compute, quiet=renewed), spec)

    def load(self, key: str) -> Activations:
        """A complete set by its key, without a model.

        Its names, and whether it is paired, are those of the capture that made it; neither is part
        of the key.

        Raises:
            UserError: it is absent, incomplete or damaged.

        Warns:
            UserWarning: it is of format 1, which does not vouch for the order of the prompts.
        """
        from ss_lens.activations.activations import stacked
        from ss_lens.activations.shards import read_whole

        folder = self._folder(key)
        manifest = Manifest.read(folder)
        stored = read_whole(folder)
        if stored is None and _wait_for_writer(folder):
            stored = read_whole(folder)
        if stored is None:
            problems = self.verify(key)
            raise UserError(
                f"activations {key[:12]} are not whole ({'; '.join(problems[:3])}): something is "
                "missing or damaged; run the command that captured them again, which computes only "
                "that."
            )
        if manifest.format != FORMAT:
            warnings.warn(
                f"activations {key[:12]} were stored by an earlier version, without a checksum of "
                "which row is which prompt; the command that captured them checks it, and "
                f"`ss-lens store rm {key[:12]}` has them captured again.",
                stacklevel=2,
            )
        return stacked(stored, manifest.spec)

    def stored_keys(self) -> list[str]:
        """The keys of all sets, also of those whose manifest is damaged.

        Raises:
            UserError: a file where the store would be, or above it.
        """
        _check_is_no_file(self.root)
        return sorted(path.parent.name for path in self.root.glob(f"*/{NAME}"))

    def entries(self) -> list[StoreEntry]:
        """Every set whose manifest can be read, ordered by model, dataset and key.

        Warns:
            UserWarning: a manifest that cannot, and the command that removes its set.
        """
        found = []
        for key in self.stored_keys():
            try:
                manifest = Manifest.read(self.root / key)
            except UserError as error:
                warnings.warn(f"not listed: {error}", stacklevel=2)
                continue
            sizes = _sizes(self.root / key)
            found.append(StoreEntry(key, manifest.spec, len(sizes), len(manifest.plan), sum(sizes)))
        return sorted(found, key=lambda e: (e.spec.model.name, e.spec.dataset_name, e.key))

    def resolve(self, prefix: str) -> str:
        """The one key that starts with ``prefix``.

        Raises:
            UserError: none or several do.
        """
        check_is("prefix", prefix, (str,), "the first characters of a key, as text")
        matches = [key for key in self.stored_keys() if key.startswith(prefix)]
        if len(matches) != 1 or not prefix:
            raise UserError(
                f"{len(matches)} sets in {self.root} start with {prefix!r}; expected exactly one. "
                "`ss-lens store ls` lists the keys."
            )
        return matches[0]

    def remove(self, key: str) -> None:
        """Delete one set, damaged or not; a capture of it that runs is waited for."""
        folder = self._folder(key)
        with self._lock(folder):
            remove_leftovers(self.root)
            holder = new_holder(folder)
            try:
                os.replace(folder, holder / folder.name)  # gone at once, for whoever reads
            finally:
                shutil.rmtree(holder, ignore_errors=True)

    def verify(self, key: str) -> list[str]:
        """What is wrong with a set, one line per shard; empty when it is whole."""
        from ss_lens.activations.shards import read_shard

        folder = self._folder(key)
        try:
            manifest = Manifest.read(folder)
        except UserError as error:
            return [str(error)]
        problems = []
        for number in range(len(manifest.plan)):
            path = manifest.shard_path(folder, number)
            if not path.exists():
                problems.append(f"{path.name} is missing")
            elif read_shard(manifest, folder, number) is None:
                problems.append(f"{path.name} is damaged")
        return problems

    def _folder(self, key: str) -> Path:
        check_is("key", key, (str,), "a key of the store, as text")
        folder = self.root / key
        if not key or not (folder / NAME).exists():
            raise UserError(
                f"the store at {self.root} has no activations {key[:12]!r}; run `ss-lens capture` "
                "or `ss-lens run` again, or point SS_LENS_HOME at the store that has them."
            )
        return folder

    @contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        """Held by the one process that changes a set; the folder is there while it is held."""
        lock = FileLock(folder / ".lock")
        while True:
            make_folder(folder)
            # The lock makes its folder too, and finds that one both there and gone where it is
            # removed at that moment: `mkdir` says "exists" of what is no folder any more.
            with disk_errors(self.root), suppress(FileNotFoundError, FileExistsError):
                _acquire(lock)
                if (folder / ".lock").exists():  # else it was removed while this one waited
                    break
                lock.release()
        try:
            yield
        finally:
            lock.release()


def _check_is_no_file(root: Path) -> None:
    """Raise where a store can neither be nor be made, which must not pass for an empty one."""
    there = next(path for path in (root, *root.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(
            f"the store would be at {root}, and {there} is no folder; point SS_LENS_HOME at one."
        )


def _acquire(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is capturing the same activations; waiting for it")
        lock.acquire()


def _wait_for_writer(folder: Path) -> bool:
    """Wait until no other process captures into ``folder``; ``False`` where none can."""
    try:
        lock = FileLock(folder / ".lock")
        _acquire(lock)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            return False
        raise
    lock.release()
    return True


def _sizes(folder: Path) -> list[int]:
    """The bytes of each shard that is there."""
    sizes = []
    for path in folder.glob("shard-*.safetensors"):
        with suppress(FileNotFoundError):  # removed meanwhile
            sizes.append(path.stat().st_size)
    return sizes
