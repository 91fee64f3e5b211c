"""What the tests of steering share."""

from __future__ import annotations

import pytest
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import ContrastiveDataset, Store
from tests.fitting import Fitted, fitted_on


@pytest.fixture(scope="module")
def fitted(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Fitted:
    """Calibrations that steer every site of the given streams."""
    store = Store(tmp_path_factory.mktemp("store"))
    return lambda name, *streams: fitted_on(tiny_models[name], tiny_data, store, *streams)
