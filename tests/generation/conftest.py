"""Calibrations that steer from a given block on, shared by the tests of sweeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, Store
from ss_lens.calibration.site_selection import Explicit
from ss_lens.steering.positions import (
    AllPositions,
    GeneratedOnly,
    LastPrompt,
    Positions,
    PromptOnly,
)

EVERY: tuple[Positions, ...] = (
    AllPositions(),
    PromptOnly(),
    GeneratedOnly(),
    LastPrompt(1),
    LastPrompt(4),
)
# The first steered block, and so how many blocks are shared: none, some, all but one.
SITES = {
    0: "L0.ln2_out,L1.ln1_out,L2.ln2_out",
    1: "L1.ln1_out,L1.ln2_out,L2.ln1_out",
    2: "L2.ln2_out",
}
Fitted = Callable[[str, int], Calibration]


@pytest.fixture(scope="module")
def fitted(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Fitted:
    store = Store(tmp_path_factory.mktemp("store"))

    @lru_cache
    def fit(architecture: str, first: int) -> Calibration:
        acts = ss_lens.capture(tiny_models[architecture], tiny_data, store=store)
        return ss_lens.calibrate(acts, rule=Explicit(sites=SITES[first]))

    return fit
