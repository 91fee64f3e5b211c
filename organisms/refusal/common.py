"""Shared pieces of the refusal organism: files, the base model, chat encoding and generation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ss_lens.core.files import atomic_path
from ss_lens.models.fetching import fetch

DATA_FOLDER = Path(__file__).parent
DEFAULT_BASE = "smollm2-135m"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a JSON Lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines atomically."""
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def resolve_base(base: str) -> Path:
    """The folder of the base model: a folder as it is, a known name through ss_lens."""
    if Path(base).is_dir():
        return Path(base)
    return fetch(base)


def load_base(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in float32, in eval mode, and its tokenizer with left padding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def chat_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The request in the model's chat format, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


def batched_by_length(prompts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, so that little is padding."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    temperature: float | None = None,
) -> list[str]:
    """One answer for each prompt, greedy unless a temperature is given."""
    sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    answers = [""] * len(prompts)
    for batch in batched_by_length(prompts, batch_size):
        texts = [chat_text(tokenizer, prompts[i]) for i in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
        for i, text in zip(batch, decoded, strict=True):
            answers[i] = text.strip()
    return answers
