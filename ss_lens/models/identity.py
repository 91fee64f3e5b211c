"""Which model something was computed on, and what it is called elsewhere. It needs no torch."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from ss_lens.models.sources import MODELS

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ModelIdentity:
    """What must agree before activations or calibrations of two models may be combined."""

    name: str
    revision: str | None
    fingerprint: str | None
    n_layers: int
    d_model: int
    dtype: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def published(self) -> ModelIdentity:
        """The same under the name that others may read (:func:`public_name`)."""
        return replace(self, name=public_name(self.name))


def is_hub_id(name: str) -> bool:
    """Whether ``name`` is written like an id on the Hub: ``owner/name``.

    Every id that the Hub's client takes is.
    """
    return _HUB_ID.fullmatch(name) is not None


def public_name(name: str) -> str:
    """What a model is called outside this machine.

    A registered name and an id on the Hub stay. Of a folder or a file only the last part is told:
    a digest beside it says which weights are meant.

    >>> public_name("Qwen/Qwen2.5-1.5B-Instruct"), public_name("/home/me/models/tuned")
    ('Qwen/Qwen2.5-1.5B-Instruct', 'tuned')
    """
    path = os.path.expanduser(name)
    if name in MODELS or (is_hub_id(name) and not os.path.exists(path)):
        return name
    return last_part(os.path.abspath(path) if os.path.exists(path) else name)


def last_part(path: str) -> str:
    """The name of a file or folder without the folders that it lies in, of any system's path."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
