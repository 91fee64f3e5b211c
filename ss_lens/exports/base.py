"""Which model an export belongs to, so that others find it, know it again and know its licence."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.files import sha256_of_file
from ss_lens.models.fetching import weights_digest
from ss_lens.models.gguf.header import read_header
from ss_lens.models.load import Source, identify, loaded_from


@dataclass(frozen=True)
class Base:
    """The model that was calibrated.

    Attributes:
        name: how others find it: an id on the Hub, a folder, a file, or a registered name.
        revision: on the Hub.
        sha256: of the file of its weights, where it is one file and nothing was merged into it.
        fingerprint: of its weights and settings as they were loaded.
        dtype: in which it was loaded.
        licence: as its files state it; ``None`` where they do not.
        adapter: the adapter that was merged into the weights as they were loaded, by its folder.
    """

    name: str
    revision: str | None
    sha256: str | None
    fingerprint: str
    dtype: str
    licence: str | None
    adapter: str | None

    @classmethod
    def of(cls, model: TransformerBridge) -> Base:
        """The base behind a loaded model.

        Raises:
            UserError: it was not loaded by :func:`ss_lens.load_model`.
        """
        loaded, identity = loaded_from(model), identify(model)
        source, adapter = loaded.source, loaded.adapter
        given = Path(identity.name).expanduser()
        name = str(given.resolve()) if given.exists() else identity.name
        on_hub = adapter is None and source.gguf is None and source.folder is None
        return cls(
            name=source.place if on_hub else name,
            revision=identity.revision if on_hub else None,
            sha256=None if adapter else _digest(source),
            fingerprint=str(identity.fingerprint),
            dtype=identity.dtype,
            licence=_licence(source),
            adapter=None if adapter is None else adapter.name,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _digest(source: Source) -> str | None:
    if source.folder:
        return weights_digest(source.folder)
    return sha256_of_file(source.gguf) if source.gguf else None


def _licence(source: Source) -> str | None:
    """What the GGUF header says, or the front matter of the model card beside the weights."""
    if source.gguf and (stated := read_header(source.gguf).licence):
        return stated
    card: Any = source.folder / "README.md" if source.folder else None
    if card is None and source.gguf is None:
        card = try_to_load_from_cache(source.place, "README.md", revision=source.revision)
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    text = Path(card).read_text("utf-8", errors="replace")
    matter = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = matter and re.search(r"^license:\s*['\"]?([\w.-]+)", matter[1], re.MULTILINE)
    return found[1] if found else None
