"""How far an edit reaches, and so what the rows of a sweep have in common."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.generation.reuse import Reach, Repeats
from ss_lens.steering.positions import (
    AllPositions,
    GeneratedOnly,
    LastPrompt,
    Positions,
    PromptOnly,
)
from tests.generation.conftest import EVERY, Fitted


@pytest.mark.parametrize(
    ("layer_types", "suits"),
    [
        (["full_attention", "sliding_attention", "full_attention"], True),
        (["full_attention", "conv", "full_attention"], False),
        (["full_attention", "full_attention"], False),
    ],
)
def test_sharing_suits_models_that_cache_keys_in_every_layer(
    layer_types: list[str],
    suits: bool,
    tiny_models: dict[str, TransformerBridge],
    fitted: Fitted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sites = tiny_models["gemma2"], fitted("gemma2", 1).selected_sites
    monkeypatch.setattr(model.original_model.config, "layer_types", layer_types)
    assert Reach.of(model, sites, AllPositions()).shares == suits


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_repeats_name_for_each_row_the_first_that_is_like_it(values: list[int]) -> None:
    repeats = Repeats.of(values, torch.device("cpu"))
    stand_ins = repeats.first[repeats.like].tolist()
    assert stand_ins == [values.index(value) for value in values]
    assert len(repeats.first) == len(set(values))
    assert repeats.any == (len(set(values)) < len(values))


@pytest.mark.parametrize("positions", EVERY, ids=repr)
def test_an_edit_reaches_what_its_positions_and_sites_say(
    positions: Positions, tiny_llama: TransformerBridge, fitted: Fitted
) -> None:
    reach = Reach.of(tiny_llama, fitted("llama", 2).selected_sites, positions)
    prompt = isinstance(positions, AllPositions | PromptOnly)
    assert reach.prefix == (2 if prompt else 3)
    assert reach.prompt == (3 if isinstance(positions, GeneratedOnly) else 2)
    assert reach.answer == isinstance(positions, AllPositions | GeneratedOnly)
    assert reach.keep == (positions.k if isinstance(positions, LastPrompt) else 1)
    assert reach.shares
