"""What is measured: a model by its name, or random weights of a named shape built on the device."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

import ss_lens
from ss_lens import Calibration, ContrastiveDataset, Store
from ss_lens.calibration.site_selection import Explicit, Uniform
from ss_lens.models.loading.devices import device_named, device_of, dtype_named
from ss_lens.scoring.refusal_score import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS

STREAMS = ("ln1_out", "ln2_out")
FEW = 24
"""Sites of a typical calibration: those of the blocks from the middle on."""

SHAPES: dict[str, PreTrainedConfig] = {
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        architectures=["LlamaForCausalLM"],
    ),
    "qwen2.5-1.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
    ),
    "tiny": Qwen2Config(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=14,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        architectures=["Qwen2ForCausalLM"],
    ),
}
"""Sizes as their publishers give them; "tiny" tries the benchmark itself."""

WORDS = 600
SYSTEM = " ".join(f"w{i}" for i in range(24))
"""As long as the default system prompt of a common template."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what it reads."""

    name: str
    model: TransformerBridge
    data: ContrastiveDataset

    @property
    def prompts(self) -> list[str]:
        return [*self.data.positive, *self.data.negative]

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def calibrations(self) -> dict[str, Calibration]:
        """One plane at :data:`FEW` sites from the middle block on, and at all norm outputs."""
        with tempfile.TemporaryDirectory() as folder:
            acts = ss_lens.capture(self.model, self.data, streams=STREAMS, store=Store(folder))
        middle = self.model.cfg.n_layers // 2
        upper = [site for site in acts.sites if site.layer >= middle][:FEW]
        rules = (Explicit(sites=",".join(map(str, upper))), Uniform())
        found = [ss_lens.calibrate(acts, rule=rule) for rule in rules]
        return {f"{len(made.selected_sites)} sites": made for made in found}

    def untouched(self) -> nn.Module:
        """The Hugging Face model as it was before TransformerLens wrapped it, on the same weights.

        Booting a bridge changes its model for good (its attention becomes eager).
        """
        wrapped = cast(Any, self.model.original_model)
        with init_empty_weights(include_buffers=False):
            plain = AutoModelForCausalLM.from_config(wrapped.config, attn_implementation="sdpa")
        weights = {
            name.replace("_original_component.", ""): weight
            for name, weight in wrapped.named_parameters(remove_duplicate=False)
        }
        missing, _ = plain.load_state_dict(weights, assign=True, strict=False)
        tied = plain.config.tie_word_embeddings
        assert set(missing) <= ({"lm_head.weight"} if tied else set()), missing
        plain.tie_weights()
        return plain.to(self.device).eval()


def named(name: str, device: str, dtype: str, file: Path | None, per_class: int) -> Subject:
    """A model from its usual source, with prompts of ``file`` or of the embedded set."""
    data = ss_lens.load_dataset("refusal")
    if file is not None:
        rows = [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
        half = min(per_class, len(rows) // 2)
        data = ContrastiveDataset("benchmark", tuple(rows[:half]), tuple(rows[half : 2 * half]))
    model = ss_lens.load_model(name, device=device, dtype=dtype)
    return Subject(name, model, data.head(per_class))


def random_weights(shape: str, device: str, dtype: str, per_class: int) -> Subject:
    """Random weights of a named shape, built on the device, with prompts of random words."""
    where = device_named(device)
    kind = dtype_named(dtype, where)
    torch.manual_seed(0)
    with torch.device(where):
        made = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=kind)
    model = TransformerBridge.boot_transformers(
        f"random {shape}",
        hf_model=made.eval(),
        tokenizer=_word_tokenizer(),
        device=where,
        dtype=kind,
    )
    model.original_model.requires_grad_(False)
    return Subject(model.cfg.model_name, model, _random_prompts(per_class))


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words and a chat template, without any file."""
    openings = [text.split()[0] for text in (*REFUSAL_OPENINGS, *COMPLIANCE_OPENINGS)]
    words = ["</s>", "<pad>", "<unk>", "assistant", *openings, *(f"w{i}" for i in range(WORDS))]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    wrapped.chat_template = (
        SYSTEM + " {% for m in messages %}{{ m['content'] }} </s> {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    return wrapped


def _random_prompts(per_class: int) -> ContrastiveDataset:
    """Of 12 to 60 words; the classes use different words, so that a direction exists."""
    draw = random.Random(0)

    def prompts(words: Sequence[int]) -> tuple[str, ...]:
        lengths = [draw.randint(12, 60) for _ in range(per_class)]
        return tuple(" ".join(f"w{draw.choice(words)}" for _ in range(n)) for n in lengths)

    half = WORDS // 2
    return ContrastiveDataset("random", prompts(range(half)), prompts(range(half, WORDS)))
