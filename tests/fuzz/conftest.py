"""The long run of trials is asked for by its marker, ``-m fuzz``."""

from __future__ import annotations

import pytest

from tests.gguf_files import tiny_gguf as tiny_gguf


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "fuzz" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("fuzz")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
