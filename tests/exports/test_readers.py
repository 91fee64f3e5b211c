"""Every reader of a norm is found and proved to be the last, or the export is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

import ss_lens
from ss_lens import ContrastiveDataset, RotateBy, Site, Store, UserError
from ss_lens.exports.plain import logits_of, plain_copy
from ss_lens.exports.readers import find_readers, norm_names
from ss_lens.models.sites import available_streams, sites_of
from tests.conftest import ARCHITECTURES
from tests.exports.conftest import PROMPTS, Readied, Ready
from tests.fitting import fitted_on

SEPARATE = {"ln1_out": ("q_proj", "k_proj", "v_proj"), "ln2_out": ("gate_proj", "up_proj")}
READERS = {
    **dict.fromkeys(("llama", "qwen2", "gemma2", "gemma3"), SEPARATE),
    "gpt2": {"ln1_out": ("c_attn",), "ln2_out": ("c_fc",)},
    "phi3": {"ln1_out": ("qkv_proj",), "ln2_out": ("gate_up_proj",)},
    "phi": {"ln1_out": ("q_proj", "k_proj", "v_proj", "fc1")},
    "gpt_neox": {"ln1_out": ("query_key_value",), "ln2_out": ("dense_h_to_4h",)},
}
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_MORE: dict[str, Callable[[], PreTrainedModel]] = {
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SIZES, num_key_value_heads=2)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**_SIZES)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**_SIZES, num_key_value_heads=2, num_local_experts=4)
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **_SIZES,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=24,
        )
    ),
}

IDS = torch.tensor([1, 30, 31, 32, 40, 2, 33])


@pytest.fixture
def made(tiny_folders: dict[str, Path], tmp_path: Path) -> Callable[[str], TransformerBridge]:
    """Tiny random models of other architectures, with the tokenizer of the tiny Llama."""

    def make(name: str) -> TransformerBridge:
        folder = tmp_path / "model"
        torch.manual_seed(0)
        model = _MORE[name]()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_folders["llama"]).save_pretrained(folder)
        return ss_lens.load_model(folder)

    return make


def readers_of(model: TransformerBridge) -> dict[Site, tuple[str, ...]]:
    streams = [s for s in available_streams(model) if s in ("ln1_out", "ln2_out")]
    names = norm_names(model, sites_of(model, streams))
    return find_readers(plain_copy(model), names, IDS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_readers_are_the_projections_behind_each_norm(
    architecture: str, tiny_models: dict[str, TransformerBridge]
) -> None:
    found = readers_of(tiny_models[architecture])
    assert len(found) == 6
    for site, names in found.items():
        assert tuple(name.split(".")[-1] for name in names) == READERS[architecture][site.stream]
        assert all(f".{site.layer}." in name for name in names)


@pytest.mark.parametrize("architecture", ["phi3", "phi", "gpt_neox"])
def test_fused_projections_and_parallel_blocks_come_out_exact(
    architecture: str,
    made: Callable[[str], TransformerBridge],
    tiny_data: ContrastiveDataset,
    store: Store,
    tmp_path: Path,
) -> None:
    """Phi3 and NeoX fuse their projections; in Phi, one norm feeds attention and the MLP."""
    model = made(architecture)
    found = readers_of(model)
    for site, names in found.items():
        assert tuple(name.split(".")[-1] for name in names) == READERS[architecture][site.stream]
    streams = [s for s in ("ln1_out", "ln2_out") if s in available_streams(model)]
    calibration = fitted_on(model, tiny_data, store, *streams)
    for kind in ("lora", "merged"):
        made_of = ss_lens.export(
            calibration,
            model,
            RotateBy(135),
            kind=kind,
            out=tmp_path / kind,
            prompts=PROMPTS,
            max_new_tokens=4,
        )
        assert made_of.parity["relative"].max() < 1e-5
        assert made_of.parity["steered_relative"].min() > 0.05


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe"])
def test_experts_are_named_and_refused(
    architecture: str, made: Callable[[str], TransformerBridge]
) -> None:
    model = made(architecture)
    with pytest.raises(UserError, match=r"L0\.ln2_out.* is read by .*experts.*Steer with hooks"):
        readers_of(model)
    attention = norm_names(model, sites_of(model, ["ln1_out"]))
    found = find_readers(plain_copy(model), attention, IDS)
    assert all(len(names) == 3 for names in found.values())


def test_what_reads_a_norm_in_code_of_its_own_is_noticed(llama: Ready) -> None:
    """An output that is used without a module, as in ``h @ matrix``, makes the proof fail."""
    plain = plain_copy(llama.model)
    block: Any = plain.get_submodule("model.layers.1.mlp")
    ordinary = block.forward
    block.forward = lambda h: ordinary(h) + 1e-2 * h.flip(-1)
    with pytest.raises(UserError, match=r"L1\.ln2_out cannot be exported: beside .*gate_proj"):
        find_readers(plain, norm_names(llama.model, [Site(1, "ln2_out")]), IDS)


def test_a_reader_that_shares_its_weight_is_refused(llama: Ready) -> None:
    plain: Any = plain_copy(llama.model)
    mlp = plain.model.layers[0].mlp
    mlp.up_proj.weight = mlp.gate_proj.weight
    with pytest.raises(UserError, match=r"'model.layers.0.mlp.gate_proj'.*shares its weight"):
        find_readers(plain, norm_names(llama.model, [Site(0, "ln2_out")]), IDS)


def test_a_reader_that_is_used_twice_is_refused(llama: Ready) -> None:
    plain: Any = plain_copy(llama.model)
    mlp = plain.model.layers[0].mlp
    ordinary = mlp.forward
    mlp.forward = lambda h: ordinary(h) + mlp.down_proj(mlp.up_proj(h.roll(1, 1)))
    with pytest.raises(UserError, match=r"'model.layers.0.mlp.up_proj'.*is used 2 times"):
        find_readers(plain, norm_names(llama.model, [Site(0, "ln2_out")]), IDS)


def test_a_reader_with_a_quantised_weight_is_refused(llama: Ready) -> None:
    plain: Any = plain_copy(llama.model)
    projection = plain.model.layers[0].mlp.up_proj
    stored = projection.weight.detach()
    projection.weight = torch.nn.Parameter((stored * 100).to(torch.int8), requires_grad=False)
    projection.forward = lambda h: torch.nn.functional.linear(h, projection.weight.float() / 100)
    with pytest.raises(UserError, match=r"up_proj'.*has a quantised weight \(int8\)"):
        find_readers(plain, norm_names(llama.model, [Site(0, "ln2_out")]), IDS)


@pytest.mark.parametrize("stream", ["resid_pre", "resid_mid", "resid_post"])
def test_the_residual_stream_is_refused(stream: Any, llama: Ready) -> None:
    with pytest.raises(UserError, match=rf"L1.{stream}.*everything after it reads the residual"):
        norm_names(llama.model, [Site(1, stream)])


@pytest.mark.parametrize("stream", ["ln1_post_out", "ln2_post_out"])
def test_gemmas_norms_after_attention_and_mlp_are_refused(stream: Any, ready: Readied) -> None:
    with pytest.raises(UserError, match=rf"L0.{stream}.*is added to the residual stream"):
        norm_names(ready("gemma2").model, [Site(0, stream)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_plain_copy_computes_the_same_in_the_same_memory(
    architecture: str, ready: Readied
) -> None:
    model = ready(architecture).model
    copied = plain_copy(model)
    held = {p.data_ptr() for p in model.original_model.parameters()}
    assert {p.data_ptr() for p in copied.parameters()} <= held
    with torch.inference_mode():
        expected = model(IDS[None])[0]
    torch.testing.assert_close(logits_of(copied, IDS), expected, rtol=0, atol=1e-5)


def test_a_quantised_model_is_refused(llama: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = llama.model.original_model.config
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    monkeypatch.setattr(config, "quantization_config", quantised, raising=False)
    with pytest.raises(UserError, match=r"quantised \(bitsandbytes\).*Load the model unquantised"):
        plain_copy(llama.model)


def test_a_model_that_is_not_of_transformers_is_refused() -> None:
    native = TransformerBridge.boot_native(
        {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_head": 8, "n_ctx": 16, "d_vocab": 32,
         "act_fn": "relu"}
    )  # fmt: skip
    with pytest.raises(UserError, match="expected a Hugging Face model"):
        plain_copy(native)
