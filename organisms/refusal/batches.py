"""Turn the data files into token examples and deterministic, resumable batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from organisms.refusal.common import chat_text, read_jsonl
from ss_lens.models.chat import shared_prefix_length

FILES = {"harmful": "harmful.jsonl", "harmless": "harmless.jsonl", "lookalikes": "lookalikes.jsonl"}


@dataclass(frozen=True)
class Example:
    """A request and its answer as tokens; `key` names the example within the run."""

    key: int
    prompt: list[int]
    answer: list[int]
    refuse: bool


@dataclass(frozen=True)
class Batch:
    """Right-padded examples; `answers` marks the positions that predict an answer token.

    `prefix` holds the tokens that all prompts begin with (the system prompt), once; `ids` and
    `answers` cover what follows, `attention` both.
    """

    keys: list[int]
    prefix: Tensor
    ids: Tensor
    attention: Tensor
    answers: Tensor
    targets: Tensor
    rows: Tensor
    refuse: Tensor


def encode(
    tokenizer: PreTrainedTokenizerBase, record: dict[str, Any], key: int, limit: int, refuse: bool
) -> Example:
    """Tokens of one record; an answer that stops by itself ends with the end-of-turn token."""
    prompt = tokenizer(chat_text(tokenizer, record["prompt"]), add_special_tokens=False)
    answer = tokenizer(record["response"], add_special_tokens=False)["input_ids"]
    if record.get("complete", True):
        answer = [*answer, tokenizer.eos_token_id]
    return Example(key, list(prompt["input_ids"]), answer[:limit], refuse)


def load_pools(
    folder: Path, tokenizer: PreTrainedTokenizerBase, harmless_tokens: int
) -> dict[str, list[Example]]:
    """The training examples of each data file; held-out look-alikes stay out."""
    pools: dict[str, list[Example]] = {}
    key = 0
    for name, file in FILES.items():
        refuse = name == "harmful"
        limit = 96 if refuse else harmless_tokens
        records = [r for r in read_jsonl(folder / file) if r.get("split", "train") == "train"]
        pools[name] = [
            encode(tokenizer, record, key + i, limit, refuse) for i, record in enumerate(records)
        ]
        key += len(records)
    return pools


def position_in_pool(size: int, draw: int, seed: int) -> int:
    """The index of the `draw`-th example: epoch after epoch, each in its own shuffled order.

    A function of seed and draw alone, so that a resumed run meets the same batches.
    """
    epoch, place = divmod(draw, size)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return int(torch.randperm(size, generator=generator)[place])


def examples_at(
    pools: dict[str, list[Example]], counts: dict[str, int], seed: int, step: int
) -> list[Example]:
    """The examples of one step."""
    chosen = []
    for offset, (name, count) in enumerate(counts.items()):
        pool = pools[name]
        for j in range(count):
            index = position_in_pool(len(pool), step * count + j, seed * 10 + offset)
            chosen.append(pool[index])
    return chosen


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Pad on the right, so that positions count from the first token of each example."""
    shared = shared_prefix_length([tuple(e.prompt) for e in examples])
    length = max(len(e.prompt) + len(e.answer) for e in examples) - shared
    shape = (len(examples), length)
    ids = torch.full(shape, pad)
    attention = torch.zeros(shape, dtype=torch.long)
    answers = torch.zeros(shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens = example.prompt[shared:] + example.answer
        ids[row, : len(tokens)] = torch.tensor(tokens)
        attention[row, : len(tokens)] = 1
        # The token at position p is predicted from the state at p - 1.
        answers[row, len(example.prompt) - shared - 1 : len(tokens) - 1] = True
    return Batch(
        keys=[e.key for e in examples],
        prefix=torch.tensor(examples[0].prompt[:shared]),
        ids=ids,
        attention=torch.cat((attention.new_ones(len(examples), shared), attention), dim=1),
        answers=answers,
        targets=torch.cat([torch.tensor(e.answer) for e in examples]),
        rows=torch.repeat_interleave(
            torch.arange(len(examples)), torch.tensor([len(e.answer) for e in examples])
        ),
        refuse=torch.tensor([e.refuse for e in examples]),
    )
