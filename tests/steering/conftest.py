"""What the tests of steering share."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import ContrastiveDataset, Store
from tests.fitting import Fitted, fitted_on
from tests.oracles import HuggingFaceOracle
from tests.steering.rows import TINY


@pytest.fixture(scope="module")
def fitted(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Fitted:
    """Calibrations that steer every site of the given streams."""
    store = Store(tmp_path_factory.mktemp("store"))
    return lambda name, *streams: fitted_on(tiny_models[name], tiny_data, store, *streams)


@pytest.fixture(scope="module")
def oracles(tiny_folders: dict[str, Path]) -> dict[str, HuggingFaceOracle]:
    """The same models in plain transformers."""
    return {name: HuggingFaceOracle(tiny_folders[name]) for name in TINY}
