"""Tiny judges, of the architectures of the real ones.

Random ones are compared with plain transformers; in planted ones a marker word anywhere in the text
decides the next token, so that every outcome can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **sizes: LlamaForCausalLM(LlamaConfig(**sizes)),
    "mistral": lambda **sizes: MistralForCausalLM(MistralConfig(**sizes)),
    "qwen2": lambda **sizes: Qwen2ForCausalLM(Qwen2Config(**sizes)),
    "qwen3": lambda **sizes: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **sizes)),
}
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
MARKERS = ["alpha", "beta", "gamma"]
WIDTH = 16


def save_checkpoint(
    folder: Path, architecture: str, outcomes: Sequence[str], template: str | None = None
) -> tuple[Any, PreTrainedTokenizerFast]:
    """A random checkpoint whose tokenizer reads bytes, and each marker and outcome as one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_tokens([*MARKERS, *outcomes])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    wrapped.chat_template = template
    torch.manual_seed(3)
    model = CONFIGS[architecture](
        vocab_size=len(wrapped),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return model, wrapped


@torch.no_grad()
def plant(
    folder: Path, model: Any, tokenizer: Any, outcomes: Sequence[str], otherwise: str
) -> None:
    """Weights that answer ``outcomes[i]`` if ``MARKERS[i]`` is in the text, else ``otherwise``.

    Attention is uniform and carries the markers' own dimensions to the last token, where the
    unembedding reads them; an outcome is followed by the end of the text.
    """
    layer = model.model.layers[0]
    for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
        module.weight.zero_()
    carried = torch.zeros(WIDTH)
    carried[1 : 1 + len(MARKERS)] = 1
    layer.self_attn.v_proj.weight.copy_(torch.diag(carried))
    layer.self_attn.o_proj.weight.copy_(torch.eye(WIDTH))
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            bias.zero_()
    embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
    embedding.zero_()
    unembedding.zero_()
    embedding[:, 0] = 0.001
    ids = tokenizer.get_vocab()
    unembedding[ids[otherwise], 0] = 1
    unembedding[ids["</s>"], WIDTH - 1] = 1000
    for place, (marker, outcome) in enumerate(zip(MARKERS, outcomes, strict=False), start=1):
        embedding[ids[marker]] = torch.eye(WIDTH)[place]
        unembedding[ids[outcome], place] = 10
    for outcome in {*outcomes, otherwise}:
        embedding[ids[outcome]] = torch.eye(WIDTH)[WIDTH - 1]
    model.save_pretrained(folder)


PROMPTS = [f"w{i} count" for i in range(8)]
RESPONSES = ["w1", "alpha w2 w3", "beta", "", "w4 " * 20, "gamma w5", "beta w6 w7 w1", "alpha"]
LONG = [letter * 20 * n for n, letter in enumerate("qwertyui", start=1)]


FLAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ m['role'] }} : {% for part in m['content'] %}"
    "{{ part['text'] | trim }} {% endfor %}{% endfor %}verdict :"
)


def planted_guard(
    folder: Path, architecture: str, outcomes: Sequence[str], otherwise: str, template: str = FLAT
) -> str:
    known = list(dict.fromkeys([*outcomes, otherwise]))
    model, tokenizer = save_checkpoint(folder, architecture, known, template)
    plant(folder, model, tokenizer, outcomes, otherwise)
    return str(folder)


def verdicts(table: pd.DataFrame) -> list[str | None]:
    return table["verdict"].tolist()
