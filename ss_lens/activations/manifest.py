"""What one set in the store says of itself, and the shards that it vouches for.

A set is a folder named by the key of its specification. ``manifest.json`` holds the specification
and the plan (the prompts of each shard) under a seal. Each shard is a safetensors file with the
SHA-256 of the key, the plan, the shard's number and the values together, so that a shard is read
only as the part of the set that it was written for. Format 1 had no seal, and digests of the values
alone; it is read where its specification gives the key and its plan names each prompt once. This
module needs no torch; :mod:`ss_lens.activations.shards` reads and writes the values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ss_lens.activations.spec import CaptureSpec
from ss_lens.core.errors import UserError
from ss_lens.core.files import json_text, read_json
from ss_lens.core.sealed import read_sealed_json, write_sealed_json

FORMAT = 2
NAME = "manifest.json"
_FORMAT_1 = frozenset({"format", "spec", "shards"})


@dataclass(frozen=True)
class Manifest:
    """The specification of a set, and which prompts stand in which shard.

    Raises:
        UserError: the plan does not name each prompt exactly once.
    """

    spec: CaptureSpec
    plan: tuple[tuple[int, ...], ...]
    format: int = FORMAT

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(self.spec.n_prompts)) or not all(self.plan):
            raise UserError(
                f"a plan must name each of the {self.spec.n_prompts} prompts once, in shards that "
                "are not empty."
            )

    @classmethod
    def of(cls, spec: CaptureSpec, plan: Sequence[Sequence[int]]) -> Manifest:
        return cls(spec, tuple(tuple(map(int, indices)) for indices in plan))

    @property
    def order(self) -> tuple[int, ...]:
        """The prompts in the order in which they were planned."""
        return tuple(index for indices in self.plan for index in indices)

    def write(self, folder: Path) -> None:
        assert self.format == FORMAT, "earlier formats are only read"
        write_sealed_json(
            folder / NAME,
            {"format": FORMAT, "spec": self.spec.as_json(), "shards": [*map(list, self.plan)]},
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the set in ``folder``, whose name is its key.

        Raises:
            UserError: absent, of another format, or changed since it was written.
        """
        path, what = folder / NAME, "manifest of the store"
        remedy = f"remove the set with `ss-lens store rm {folder.name[:12]}` and capture it again"
        number = check_format(folder)
        values = read_sealed_json(
            path, what, unsealed=_FORMAT_1 if number == 1 else frozenset(), remedy=remedy
        )
        try:
            spec = CaptureSpec.from_json(values.get("spec"))
            made = cls(spec, _plan(values.get("shards")), 1 if number == 1 else FORMAT)
        except UserError as error:
            problem = str(error).rstrip(".")
            raise UserError(f"the {what} at {path} is damaged ({problem}); {remedy}.") from error
        if spec.key != folder.name:
            raise UserError(
                f"the {what} at {path} is damaged (it describes the set {spec.key[:12]}); {remedy}."
            )
        return made

    def shard_path(self, folder: Path, number: int) -> Path:
        return folder / f"shard-{number:05d}.safetensors"

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the key and the plan, which each shard's digest is over beside its values."""
        return hashlib.sha256(json_text([self.spec.key, self.plan]).encode()).hexdigest()


def check_format(folder: Path) -> int | None:
    """The format of the manifest in ``folder``; ``None`` where it is too damaged to tell.

    Raises:
        UserError: a format that this version does not read.
    """
    try:
        found = read_json(folder / NAME, "manifest of the store")
    except UserError:
        return None
    number = found.get("format") if isinstance(found, dict) else None
    if type(number) is not int:
        return None
    if number in (1, FORMAT):
        return number
    raise UserError(
        f"{folder} has store format {number}, this version reads 1 and {FORMAT}; "
        f"remove it with `ss-lens store rm {folder.name[:12]}`."
    )


def _plan(values: Any) -> tuple[tuple[int, ...], ...]:
    """The untrusted plan of a manifest, as shards of prompt indices."""
    if not isinstance(values, list) or not all(isinstance(shard, list) for shard in values):
        raise UserError("the plan must be a list of lists.")
    if not all(type(index) is int for shard in values for index in shard):
        raise UserError("the plan must hold whole numbers.")
    return tuple(map(tuple, values))
