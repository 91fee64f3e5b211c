"""A tiny llama in a GGUF file, and the logits of a model."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import TEMPLATE

TINY_LLAMA = {
    "vocab_size": 265,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}
GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of query and key rows that llama.cpp wants for its rotary embedding."""
    width = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, width // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


@pytest.fixture(scope="session")
def tiny_gguf(
    tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LlamaForCausalLM]:
    """A llama in a GGUF file as llama.cpp would write it, and the model that it came from."""
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig(**TINY_LLAMA)).eval()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    words = AutoTokenizer.from_pretrained(tiny_folders["qwen2"]).get_vocab()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(265)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*sorted(words, key=words.__getitem__), "w1"])
    writer.add_token_types([3] * 4 + [1] * 261)
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    for layer in range(2):
        for theirs, ours in GGUF_NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = interleaved(weight, 4 if theirs == "attn_q" else 2)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


@torch.inference_mode()
def logits_of(model: TransformerBridge, ids: torch.Tensor) -> torch.Tensor:
    return model(ids)


def write_tiny_gguf(
    folder: Path, architecture: str, path: Path, *, tokenizer: bool = False
) -> Path:
    """The model of a folder in a GGUF file, as llama.cpp would write it (without its words).

    With a ``tokenizer``, llama.cpp loads it, and takes prompts as token ids.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    table = gguf.get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if architecture.startswith("gemma"):
        writer.add_key_length(config.head_dim)
    writer.add_token_list([f"w{i}" for i in range(config.vocab_size)])
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_types([1] * config.vocab_size)
        writer.add_token_merges(["w 1"])
        writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        array = weight.numpy()
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            queries = stem.endswith("q_proj")
            heads = config.num_attention_heads if queries else config.num_key_value_heads
            array = interleaved(array, heads)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            array = array + 1
        writer.add_tensor(f"{table.get_name(stem)}.{suffix}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
