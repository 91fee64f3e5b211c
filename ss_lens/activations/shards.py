"""The rows of one set in the store: read where all of them are whole, completed where not."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ss_lens.activations.manifest import NAME, Manifest, check_format
from ss_lens.activations.spec import CaptureSpec
from ss_lens.core.errors import UserError
from ss_lens.core.files import write_safetensors
from ss_lens.core.progress import progress_bar
from ss_lens.core.replace import remove_leftovers

logger = logging.getLogger("ss_lens.activations.store")

ComputeShard = Callable[[Sequence[int]], Tensor]
"""Prompt indices → activations ``[prompt, site, d_model]`` of those prompts."""


def read_whole(folder: Path, wanted: Manifest | None = None) -> Tensor | None:
    """All rows of a set; ``None`` where something is absent, damaged or not as ``wanted``."""
    try:
        manifest = Manifest.read(folder)
    except UserError:
        return None
    if wanted and not _agree(manifest, wanted):
        return None
    numbers = range(len(manifest.plan))
    if not all(manifest.shard_path(folder, number).exists() for number in numbers):
        return None
    rows = _empty_rows(manifest)
    for number, indices in enumerate(manifest.plan):
        values = read_shard(manifest, folder, number)
        if values is None:
            return None
        rows[list(indices)] = values
    return rows


def read_shard(manifest: Manifest, folder: Path, number: int) -> Tensor | None:
    """The values of a shard; ``None`` where it is absent or not what was written."""
    try:
        with safe_open(manifest.shard_path(folder, number), framework="pt") as file:
            values = file.get_tensor("values")
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, FileNotFoundError):
        return None
    spec = manifest.spec
    shape = (len(manifest.plan[number]), len(spec.sites), spec.model.d_model)
    if values.shape != shape or values.dtype != torch.float32:
        return None
    return values if _digest(manifest, number, values) == expected else None


def _write_shard(manifest: Manifest, folder: Path, number: int, values: Tensor) -> None:
    values = values.contiguous()
    digest = _digest(manifest, number, values)
    write_safetensors(manifest.shard_path(folder, number), {"values": values}, {"sha256": digest})


def _digest(manifest: Manifest, number: int, values: Tensor) -> str:
    digest = hashlib.sha256()
    if manifest.format != 1:
        digest.update(f"{manifest.identity}:{number}:{tuple(values.shape)}:".encode())
    digest.update(values.numpy().data)
    return digest.hexdigest()


def _agree(stored: Manifest, wanted: Manifest) -> bool:
    """Whether a stored plan can be trusted: format 1 did not seal it, so its order is compared."""
    return stored.format != 1 or stored.order == wanted.order


def claimed(folder: Path, wanted: Manifest) -> tuple[Manifest, bool]:
    """The manifest in a locked folder, and whether it had to be written again."""
    remove_leftovers(folder)
    remove_leftovers(folder.parent)
    problem = None
    if (folder / NAME).exists():
        check_format(folder)
        try:
            stored = Manifest.read(folder)
            if _agree(stored, wanted):
                return stored, False
            problem = f"the plan at {folder / NAME} is not that of these prompts"
        except UserError as error:
            problem = str(error).rsplit("; ", 1)[0]
        warnings.warn(
            f"{problem}; it is written again, and what does not agree with it is captured again.",
            stacklevel=4,
        )
    wanted.write(folder)
    return wanted, problem is not None


def completed(folder: Path, manifest: Manifest, compute: ComputeShard, *, quiet: bool) -> Tensor:
    """All rows of a set; what is absent or damaged is computed and kept.

    Warns:
        UserWarning: a damaged shard, unless ``quiet``.
    """
    rows, computed, spec = _empty_rows(manifest), 0, manifest.spec
    with progress_bar(spec.n_prompts, f"capture {spec.dataset_name}", "prompt") as bar:
        for number, indices in enumerate(manifest.plan):
            path = manifest.shard_path(folder, number)
            values = read_shard(manifest, folder, number)
            if values is None:
                if path.exists() and not quiet:
                    warnings.warn(
                        f"{path.name} of activations {folder.name[:12]} is damaged (its checksum "
                        "differs) and is captured again.",
                        stacklevel=4,
                    )
                values = compute(indices)
                _write_shard(manifest, folder, number, values)
                computed += 1
            rows[list(indices)] = values
            bar.update(len(indices))
    if computed:
        logger.info("captured %d of %d shards: %s", computed, len(manifest.plan), place_of(spec))
    else:  # another process captured it while this one waited
        logger.info("served from the store, nothing captured: %s", place_of(spec))
    return rows


def _empty_rows(manifest: Manifest) -> Tensor:
    """Room for all rows; the plan of a manifest names each of them once."""
    spec = manifest.spec
    return torch.empty(spec.n_prompts, len(spec.sites), spec.model.d_model)


def place_of(spec: CaptureSpec) -> str:
    """Which activations these are, as messages name them."""
    return f"activations {spec.key[:12]} of {spec.dataset_name} on {spec.model.name}"
