"""Answers to prompts: batched, left-padded generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.checks import check_at_least, check_is
from ss_lens.core.progress import progress_bar
from ss_lens.generation.loop import check_temperature, continue_tokens
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, Prompt, check_context, tokenize


def generate(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    temperature: float | int = 0,
    seed: int = 0,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> list[str]:
    """Answer each prompt, through the model's chat template.

    Args:
        model: steered when called inside :func:`ss_lens.steer`.
        prompts: the users' turns, or lists of turns ``{"role": ..., "content": ...}``.
        max_new_tokens: where an answer is cut off.
        batch_size: prompts per batch; changes the speed, not the result.
        temperature: 0 is greedy; above 0 samples from the softmax at that temperature. No setting
            of the checkpoint (repetition penalty, top-p) is applied.
        seed: of the sampling.
        chat: system prompt, date and further arguments of the template.

    Raises:
        UserError: an argument of another type, a prompt that is blank or no text, turns or a format
            that the template does not take, a prompt that does not fit into the context with its
            answer, or logits that are not finite.
    """
    check_is("model", model, (TransformerBridge,), "a model from ss_lens.load_model(...)")
    check_at_least("max_new_tokens", max_new_tokens)
    check_at_least("batch_size", batch_size)
    check_is("temperature", temperature, (Real,), "0 or a positive number")
    check_temperature(temperature)
    check_is("seed", seed, (Integral,), "a whole number such as 0")
    tokens = tokenize(model, prompts, chat)
    check_context(model, tokens, prompts, max_new_tokens)
    steps = math.ceil(len(tokens) / batch_size) * max_new_tokens
    with progress_bar(steps, "generate", "step") as bar:
        answers = continue_tokens(
            model,
            tokens,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=float(temperature),
            seed=seed,
            bar=bar,
        )
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
