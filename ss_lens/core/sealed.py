"""JSON files that carry the SHA-256 of their own content, so that any change to them is noticed.

A seal covers what a file says, not its layout. Where a JSON file lies beside other files, it can
hold their SHA-256 too; its seal then vouches for them. Calibrations, stores, runs and sweeps share
this.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from ss_lens.core.errors import UserError
from ss_lens.core.files import read_json, sha256_of_json, write_json

SEAL = "sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` and, under ``sha256``, the digest of it."""
    assert SEAL not in content, "the key of the seal is taken"
    return {**content, SEAL: sha256_of_json(dict(content))}


def write_sealed_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its seal, atomically."""
    write_json(path, sealed(content))


def read_sealed_json(
    path: Path, what: str, *, unsealed: Set[str] = frozenset(), remedy: str = "make it again"
) -> dict[str, Any]:
    """The content of a sealed JSON file, without its seal.

    Args:
        path: the file.
        what: names it in errors.
        unsealed: the keys of files that were written before there were seals. Only a file with
            exactly these keys may lack one, so that a damaged seal does not pass for an old file.
        remedy: what to do about a damaged one, as an imperative.

    Raises:
        UserError: absent, not a JSON object, or changed since it was written.
    """
    value = read_json(path, what, remedy=remedy)
    if not isinstance(value, dict):
        raise UserError(
            f"the {what} at {path} is damaged (it holds no keys with values); {remedy}."
        )
    if unsealed and set(value) == unsealed:
        return value
    seal = value.pop(SEAL, None)
    if seal != sha256_of_json(value):
        raise UserError(
            f"the {what} at {path} is damaged (its checksum differs, or it was edited); {remedy}."
        )
    return value
