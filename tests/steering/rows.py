"""Prompts of many lengths, and what the tests of per-row decisions ask of a model."""

from __future__ import annotations

from collections.abc import Sequence

from transformer_lens.model_bridge import TransformerBridge

import ss_lens

ANGLE = 130.0
LENGTH = 6
PROMPTS = (
    *("w9 w70 w33", "w12", "w50 w51 w52 w53 w54 w55", "w88 w20", "w101 w77 w8 w19 w23"),
    *("w60 w61", "w15 w16 w17 w18"),
)
TINY = ("llama", "gpt2", "gemma3")


def hooks_on(model: TransformerBridge) -> tuple[int, int, int]:
    whole = model.original_model
    points = sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.hook_dict.values())
    return points, len(whole._forward_pre_hooks), len(whole._forward_hooks)


def streamed_in_turns(model: TransformerBridge, prompts: Sequence[str]) -> list[list[str]]:
    """The texts of streams that are open at once and yield one token each in turn."""
    streams = [ss_lens.stream(model, one, max_new_tokens=LENGTH) for one in prompts]
    together: list[list[str]] = [[] for _ in prompts]
    for _ in range(LENGTH):
        for texts, stream in zip(together, streams, strict=True):
            texts.extend(grown.text for grown in [next(stream, None)] if grown)
    return together
