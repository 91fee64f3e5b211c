"""A judge's server and its key, and one planted classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ss_lens.judges import unload
from tests.judges.checkpoints import plant, save_checkpoint
from tests.judges.served import SECRET, Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)


@pytest.fixture(autouse=True)
def nothing_stays_loaded() -> Any:
    yield
    unload()


@pytest.fixture(scope="module", params=["llama", "mistral"])
def planted_classifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("planted") / request.param
    model, tokenizer = save_checkpoint(folder, request.param, ["Yes", "No", "maybe"])
    plant(folder, model, tokenizer, ["Yes", "No"], otherwise="maybe")
    return str(folder)
