"""A content-addressed store of activations: nothing is captured twice, nothing is half-written."""

from __future__ import annotations

import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ss_lens.activations.activations import Activations, CaptureSpec, stacked
from ss_lens.core.errors import UserError
from ss_lens.core.files import cache_root, disk_errors, read_json, write_json, write_safetensors
from ss_lens.core.progress import progress_bar

FORMAT = 1
logger = logging.getLogger(__name__)

ComputeShard = Callable[[Sequence[int]], Tensor]
"""Prompt indices → activations ``[prompt, site, d_model]`` of those prompts."""


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

    A set is split into shards of prompts. Each shard is one safetensors file that carries the
    SHA-256 of its values and appears under its name only when complete, so a killed capture goes on
    where it stopped; a lock lets one process capture while others that want the same set wait.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root) if root is not None else cache_root() / "store"

    def fetch(
        self, spec: CaptureSpec, plan: Sequence[Sequence[int]], compute: ComputeShard
    ) -> Activations:
        """The activations of ``spec``; shards that are absent or damaged are computed.

        Args:
            spec: what is wanted.
            plan: the prompt indices (positive prompts first) of each shard.
            compute: called once per shard that the store does not have.
        """
        folder = self.root / spec.key
        with disk_errors(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        with self._lock(folder):
            if not (folder / "manifest.json").exists():
                shards = [list(map(int, indices)) for indices in plan]
                write_json(
                    folder / "manifest.json",
                    {"format": FORMAT, "spec": spec.as_json(), "shards": shards},
                )
            for leftover in folder.glob(".*.safetensors.*"):  # of a process that was killed
                shutil.rmtree(leftover)
            _, plan = self._manifest(folder)
            return self._assemble(spec, folder, plan, compute)

    def load(self, key: str) -> Activations:
        """A complete set by its key, without a model.

        Its names, and whether it is paired, are those of the capture that made it; neither is part
        of the key.

        Raises:
            UserError: it is absent, incomplete or damaged.
        """
        folder = self._folder(key)
        spec, plan = self._manifest(folder)
        with self._lock(folder):
            return self._assemble(spec, folder, plan, None)

    def entries(self) -> list[StoreEntry]:
        """Everything in the store, ordered by model, dataset and key."""
        found = []
        for folder in sorted(self.root.glob("*/")):
            if (folder / "manifest.json").exists():
                spec, plan = self._manifest(folder)
                shards = sorted(folder.glob("shard-*.safetensors"))
                size = sum(shard.stat().st_size for shard in shards)
                found.append(StoreEntry(folder.name, spec, len(shards), len(plan), size))
        return sorted(found, key=lambda e: (e.spec.model.name, e.spec.dataset_name, e.key))

    def resolve(self, prefix: str) -> str:
        """The one key that starts with ``prefix``.

        Raises:
            UserError: none or several do.
        """
        keys = sorted(path.parent.name for path in self.root.glob("*/manifest.json"))
        matches = [key for key in keys if key.startswith(prefix)]
        if len(matches) != 1 or not prefix:
            raise UserError(
                f"{len(matches)} sets in {self.root} start with {prefix!r}; expected exactly one. "
                "`ss-lens store ls` lists the keys."
            )
        return matches[0]

    def remove(self, key: str) -> None:
        """Delete one set."""
        folder = self._folder(key)
        with self._lock(folder):
            shutil.rmtree(folder)

    def verify(self, key: str) -> list[str]:
        """What is wrong with a set, one line per shard; empty when it is whole."""
        folder = self._folder(key)
        _, plan = self._manifest(folder)
        problems = []
        for number in range(len(plan)):
            path = _shard_path(folder, number)
            if not path.exists():
                problems.append(f"{path.name} is missing")
            elif _read_shard(path) is None:
                problems.append(f"{path.name} is damaged")
        return problems

    def _folder(self, key: str) -> Path:
        folder = self.root / key
        if not key or not (folder / "manifest.json").exists():
            raise UserError(
                f"the store at {self.root} has no activations {key[:12]!r}; run `ss-lens capture` "
                "or `ss-lens run` again, or point SS_LENS_HOME at the store that has them."
            )
        return folder

    @contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is capturing the same activations; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _manifest(self, folder: Path) -> tuple[CaptureSpec, list[list[int]]]:
        manifest = read_json(folder / "manifest.json", "manifest of the store")
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{folder} has store format {manifest.get('format')}, this version reads {FORMAT}; "
                f"remove it with `ss-lens store rm {folder.name[:12]}`."
            )
        return CaptureSpec.from_json(manifest["spec"]), manifest["shards"]

    def _assemble(
        self,
        spec: CaptureSpec,
        folder: Path,
        plan: Sequence[Sequence[int]],
        compute: ComputeShard | None,
    ) -> Activations:
        n_prompts = spec.n_positive + spec.n_negative
        rows = torch.empty(n_prompts, len(spec.sites), spec.model.d_model)
        computed = 0
        with progress_bar(n_prompts, f"capture {spec.dataset_name}", "prompt") as bar:
            for number, indices in enumerate(plan):
                path = _shard_path(folder, number)
                values = _read_shard(path) if path.exists() else None
                if values is None:
                    if compute is None:
                        raise UserError(
                            f"{path.name} of activations {folder.name[:12]} is missing or damaged; "
                            "run the command that captured them again, which computes only that."
                        )
                    if path.exists():
                        warnings.warn(
                            f"{path.name} of activations {folder.name[:12]} is damaged (its "
                            "checksum differs) and is captured again.",
                            stacklevel=4,
                        )
                    values = compute(indices)
                    _write_shard(path, values)
                    computed += 1
                rows[list(indices)] = values
                bar.update(len(indices))
        place = f"activations {folder.name[:12]} of {spec.dataset_name} on {spec.model.name}"
        if computed:
            logger.info("captured %d of %d shards: %s", computed, len(plan), place)
        else:
            logger.info("served from the store, nothing captured: %s", place)
        return stacked(rows, spec)


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def _write_shard(path: Path, values: Tensor) -> None:
    write_safetensors(path, {"values": values.contiguous()}, {"sha256": _digest(values)})


def _read_shard(path: Path) -> Tensor | None:
    """The values of a shard, or ``None`` when its checksum does not hold."""
    try:
        with safe_open(path, framework="pt") as file:
            values = file.get_tensor("values")
            expected = (file.metadata() or {}).get("sha256")
    except SafetensorError:
        return None
    return values if _digest(values) == expected else None
