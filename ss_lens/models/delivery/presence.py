"""Whether a registered model is on this machine, and what it takes. This module needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ss_lens.core.errors import UserError
from ss_lens.core.files import read_json
from ss_lens.models.delivery.kept import GGUF, folder_of, is_here, parts_of
from ss_lens.models.sources import MODELS, Embedded, Hub, Parts, RegisteredModel


@dataclass(frozen=True)
class Presence:
    """What is known of a registered model before it is loaded.

    Attributes:
        here: whether loading it needs no network.
        begun: how much of a download is here that was cut off, in words; else empty.
        disk_bytes: what it takes on disk, where that is known: of the files that are here, else of
            what will be kept.
        memory_bytes: what its weights take in memory in float32, where that is known.
    """

    here: bool
    begun: str
    disk_bytes: int | None
    memory_bytes: int | None


def presence_of(model: RegisteredModel) -> Presence:
    """Look for a registered model in the caches of ss_lens and of the Hub client."""
    first = model.sources[0]
    if isinstance(first, Embedded):
        return presence_of(MODELS[first.base])
    if isinstance(first, Hub):
        files = _hub_files(first.repository)
        return Presence(bool(files), "", sum(p.stat().st_size for p in files) or None, None)
    file = model.file
    assert file is not None, model.name
    memory = 4 * file.n_parameters if file.n_parameters else None
    if is_here(model):
        weights = folder_of(model) / (GGUF if file.kept == "gguf" else "model.safetensors")
        return Presence(True, "", weights.stat().st_size, memory)
    return Presence(False, _begun(model), file.n_bytes if file.kept == "gguf" else memory, memory)


def _begun(model: RegisteredModel) -> str:
    sizes = next((source.sizes for source in model.sources if isinstance(source, Parts)), ())
    folder = parts_of(model)
    found = [path for path in folder.glob("part*") if path.is_file()] if folder.is_dir() else []
    return f"{len(found)} of {len(sizes)} parts" if found and sizes else ""


def _hub_files(repository: str) -> list[Path]:
    """The weight files of a repository in the Hub client's cache, if all of them are there."""
    from huggingface_hub import try_to_load_from_cache

    single = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(single, str):
        return [Path(single)]
    index = try_to_load_from_cache(repository, "model.safetensors.index.json")
    if not isinstance(index, str):
        return []
    files = [Path(index).with_name(name) for name in _named_in(Path(index))]
    return files if all(path.is_file() for path in files) else []


def _named_in(index: Path) -> list[str]:
    """The files that an index of weights names; none where it is damaged, as if it were absent."""
    try:
        found = read_json(index, "index of the weights")
    except UserError:
        return []
    table = found.get("weight_map") if isinstance(found, dict) else None
    names = {*map(str, table.values())} if isinstance(table, dict) else set[str]()
    plain = all(name == Path(name).name and name not in ("", "..") for name in names)
    return sorted(names) if plain else []
