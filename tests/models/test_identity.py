"""A model's identity: what its fingerprint depends on, and what it does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, Store, UserError
from ss_lens.models.identity import is_hub_id, public_name
from ss_lens.models.loading.fingerprint import identify
from tests.gguf_files import logits_of
from tests.oracles import relative_error


@pytest.mark.parametrize(
    "name",
    [
        *("Qwen/Qwen2.5-1.5B-Instruct", "a/b", "0/1", "_a/_b", "a.b-c_d/e.f-g_h", "a/b-c.d"),
        *("./a", "../a", "-a/b", ".a/b", "a/.b", "a/-b", "a", "/a/b", "a/b/c", "a/", "a b/c"),
    ],
)
def test_an_id_of_the_hub_has_an_owner_and_is_what_the_hubs_client_takes(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        taken = False
    else:
        taken = "/" in name
    assert is_hub_id(name) == taken


def test_two_loads_have_one_fingerprint_whatever_the_folder_is_called(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_folders["llama"], tmp_path / "renamed")
    first, second = (ss_lens.load_model(f) for f in (tiny_folders["llama"], tmp_path / "renamed"))
    assert identify(first).fingerprint == identify(second).fingerprint
    assert identify(first).fingerprint == identify(first).fingerprint
    other = ss_lens.load_model(tiny_folders["gemma2"])
    assert identify(other).fingerprint != identify(first).fingerprint


def test_running_and_hooking_a_model_leaves_its_fingerprint(
    tiny_llama: TransformerBridge,
) -> None:
    before = identify(tiny_llama).fingerprint
    ss_lens.generate(tiny_llama, ["w9"], max_new_tokens=1)
    assert identify(tiny_llama).fingerprint == before


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_changed_weight_changes_the_fingerprint(how: str, tiny_folders: dict[str, Path]) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    before = identify(model).fingerprint
    norm = model.original_model.model.norm
    weight = norm.weight
    if how == "in place":
        weight[3] += 1
    else:
        changed = weight.detach().clone()
        changed[3] += 1
        norm.weight = torch.nn.Parameter(changed, requires_grad=False)
    assert identify(model).fingerprint != before


@pytest.mark.parametrize("setting", [{"rms_norm_eps": 0.5}, {"hidden_act": "gelu"}])
def test_a_setting_that_changes_the_computation_changes_the_fingerprint(
    setting: dict[str, object], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Equal weights do not make equal activations."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_folders["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **setting}))
    one, other = ss_lens.load_model(tiny_folders["llama"]), ss_lens.load_model(folder)
    ids = torch.tensor([[1, 9, 40, 6]])
    assert relative_error(logits_of(one, ids), logits_of(other, ids)) > 0.01
    assert identify(one).fingerprint != identify(other).fingerprint


def test_compatibility_mode_is_rejected(tiny_folders: dict[str, Path]) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    model.enable_compatibility_mode()
    with pytest.raises(UserError, match="compatibility mode, which folds the norm gains"):
        identify(model)


def test_an_upgrade_of_the_library_leaves_the_fingerprint(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another default, a new setting that is off, other names and versions: nothing computes."""
    before = identify(ss_lens.load_model(tiny_folders["llama"])).fingerprint
    later = ss_lens.load_model(tiny_folders["llama"])
    config: Any = later.original_model.config
    listed = type(config).to_dict

    def upgraded(self: Any) -> dict[str, Any]:
        return {**listed(self), "brand_new": None, "another": False, "transformers_version": "9"}

    monkeypatch.setattr(type(config), "to_dict", upgraded)
    monkeypatch.setattr(type(config), "to_diff_dict", lambda self: {"other": "defaults"})
    config.initializer_range, config.attention_dropout, config.bos_token_id = 0.5, 0.1, 7
    assert identify(later).fingerprint == before


def test_a_calibration_of_before_fits_its_model_and_no_other(
    tiny_folders: dict[str, Path], tiny_data: ContrastiveDataset, store: Store
) -> None:
    model = ss_lens.load_model(tiny_folders["llama"])
    calibration = ss_lens.calibrate(
        ss_lens.capture(model, tiny_data, store=store), rule=ss_lens.Uniform()
    )
    spec = calibration.spec
    old = replace(
        calibration,
        spec=replace(spec, model=replace(spec.model, fingerprint=fingerprint_of_before(model))),
    )
    assert old.spec.model.fingerprint != spec.model.fingerprint
    old.check_fits(model)
    model.original_model.model.norm.weight[0] += 1
    with pytest.raises(UserError, match="Calibrate again on this model"):
        old.check_fits(model)


def fingerprint_of_before(model: TransformerBridge) -> str:
    """As version 0.1 had it, written out again."""
    settings = cast(Any, model.original_model).config.to_diff_dict()
    for irrelevant in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        settings.pop(irrelevant, None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.original_model.named_parameters():
        clean = name.replace("_original_component.", "")
        digest.update(f"{clean}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        ("/home/me/models/tuned", "tuned"),
        ("/home/me/models/tuned/", "tuned"),
        ("~/models/base.gguf", "base.gguf"),
        ("../runs/lora/seed0", "seed0"),
        ("runs/lora/seed0", "seed0"),
        (r"C:\Users\me\tuned", "tuned"),
        ("tuned", "tuned"),
    ],
)
def test_a_model_is_named_to_others_without_its_folder(name: str, told: str) -> None:
    assert public_name(name) == told
    assert public_name(told) == told


def test_a_folder_that_is_written_like_an_id_of_the_hub_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is to load_model; and the working folder has a name."""
    (tmp_path / "runs" / "tuned").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("runs/tuned") == "tuned"
    monkeypatch.chdir(tmp_path / "runs" / "tuned")
    assert public_name(".") == "tuned"
