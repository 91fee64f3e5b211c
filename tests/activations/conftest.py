"""A store with small shards, and a capture that asks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Activations, ContrastiveDataset, Store
from tests.activations.stores import capture_module


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "SHARD_SIZE", 4)


@pytest.fixture
def ask(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> Callable[[], Activations]:
    return lambda: ss_lens.capture(tiny_llama, tiny_data, store=store)
