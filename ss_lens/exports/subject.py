"""What is exported: a model, the base that it is, its plane, and who reads the steered sites."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ss_lens.core.files import sha256_of_file
from ss_lens.exports.linear_map import LinearMap, LowRank
from ss_lens.exports.plain import matrix_of
from ss_lens.geometry.operators import Operator
from ss_lens.geometry.plane import Plane
from ss_lens.models.fetching import weights_digest
from ss_lens.models.gguf.header import read_header
from ss_lens.models.identity import is_hub_id, public_name
from ss_lens.models.load import loaded_from
from ss_lens.models.loading.fingerprint import identify
from ss_lens.models.loading.places import Source
from ss_lens.models.sources import MODELS


@dataclass(frozen=True)
class Base:
    """The model that was calibrated.

    Attributes:
        name: as others may read it: an id on the Hub, a registered name, or the last part of the
            path of a folder or a file.
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
        on_hub = adapter is None and source.gguf is None and source.folder is None
        return cls(
            name=source.place if on_hub else public_name(identity.name),
            revision=identity.revision if on_hub else None,
            sha256=None if adapter else _digest(source),
            fingerprint=str(identity.fingerprint),
            dtype=identity.dtype,
            licence=_licence(source),
            adapter=None if adapter is None else adapter.name,
        )

    @property
    def is_found_by_name(self) -> bool:
        """Whether the name is one of the Hub or a registered one."""
        return is_hub_id(self.name) or self.name in MODELS

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is exported.

    Attributes:
        model: the bridge.
        plain: the same model without it, in the same memory.
        base: what is known of it.
        plane: where the operator acts.
        readers: the linear modules that are changed, by name.
    """

    model: TransformerBridge
    plain: PreTrainedModel
    base: Base
    plane: Plane
    readers: tuple[str, ...]

    def factors(self, change: LinearMap) -> dict[str, LowRank]:
        """The low-rank change of each reader."""
        return {
            name: change.factors(matrix_of(self.plain.get_submodule(name))) for name in self.readers
        }

    def factors_of(self, operator: Operator) -> dict[str, LowRank]:
        return self.factors(LinearMap.of(operator, self.plane))

    @property
    def stored_transposed(self) -> bool:
        """Whether the readers store the transpose of their matrix, as GPT-2's do."""
        return any(isinstance(self.plain.get_submodule(name), Conv1D) for name in self.readers)

    def folded(self, operator: Operator) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Each reader's name and matrix ``[out, in]`` under ``operator``, in float64.

        Last comes its bias, where the operator shifts by a constant; else ``None``.
        """
        change = LinearMap.of(operator, self.plane)
        for name in self.readers:
            module = self.plain.get_submodule(name)
            matrix = matrix_of(module)
            factors, bias = change.factors(matrix), None
            if change.shift.any():
                bias = cast(Tensor, module.bias).double() + change.bias(matrix)
            yield name, matrix.double() + factors.b @ factors.a, bias


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
