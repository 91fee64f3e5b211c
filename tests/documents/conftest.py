"""A new user's home: an empty store beside the models of the cache."""

from __future__ import annotations

import pytest

from tests.documents.readme import link_models


@pytest.fixture
def new_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store, so that what other runs left behind decides nothing; models are kept."""
    home = tmp_path_factory.mktemp("home")
    link_models(home)
    monkeypatch.setenv("SS_LENS_HOME", str(home))
