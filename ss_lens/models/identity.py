"""Which model something was computed on. This module needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
