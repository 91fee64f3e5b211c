"""Where a fetched model is kept, and when it is there. This module needs no torch."""

from __future__ import annotations

from pathlib import Path

from ss_lens.core.files import cache_root
from ss_lens.models.sources import RegisteredModel

GGUF = "model.gguf"
"""The name under which a GGUF file is kept in its folder."""


def folder_of(model: RegisteredModel) -> Path:
    """The folder of a model that comes as one pinned file."""
    assert model.file is not None, model.name
    return cache_root() / "models" / f"{model.name}-{model.file.sha256[:12]}"


def parts_of(model: RegisteredModel) -> Path:
    """Where its parts wait until all of them are there."""
    folder = folder_of(model)
    return folder.with_name(f"{folder.name}.parts")


def is_here(model: RegisteredModel) -> bool:
    """Whether its pinned file has been fetched, wholly."""
    assert model.file is not None, model.name
    folder = folder_of(model)
    if not (folder / "source.json").exists():
        return False
    weights = folder / GGUF
    return model.file.kept != "gguf" or (
        weights.is_file() and weights.stat().st_size == model.file.n_bytes
    )
