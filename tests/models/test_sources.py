"""The registry of models: one entry each, from which everything else derives, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

import ss_lens
from ss_lens import UserError
from ss_lens.models.loading.places import resolve
from ss_lens.models.sources import (
    DEFAULT_MODEL,
    MODELS,
    SMOLLM2_135M,
    Hub,
    RegisteredModel,
    embedded_in,
)


def test_the_registry_needs_no_torch_and_the_listing_neither() -> None:
    code = (
        "import sys, ss_lens.models.sources\n"
        "from typer.testing import CliRunner\n"
        "from ss_lens.cli.main import app\n"
        "print(CliRunner().invoke(app, ['models', '--json']).exit_code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]


def test_every_entry_has_a_source_and_every_base_an_entry() -> None:
    for name, model in MODELS.items():
        assert model.name == name
        assert model.sources
        embedded = embedded_in(name)
        assert embedded is None or embedded.base in MODELS
        if model.file is not None:
            assert len(model.file.sha256) == 64
            assert model.file.n_bytes > 0
    assert DEFAULT_MODEL in MODELS
    assert SMOLLM2_135M.name in MODELS


def test_a_new_entry_is_all_that_a_model_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "phi-x", RegisteredModel("phi-x", (Hub("somebody/phi-x"),)))
    assert resolve("phi-x", "main").place == "somebody/phi-x"
    with pytest.raises(UserError, match=r"unknown model 'phi-y'; did you mean 'phi-x'\?.*, phi-x,"):
        ss_lens.load_model("phi-y")


def test_entries_are_values() -> None:
    assert replace(SMOLLM2_135M) == SMOLLM2_135M
    assert len({*MODELS.values()}) == len(MODELS)
