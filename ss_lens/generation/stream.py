"""One answer as it grows: token by token, to be shown or stopped at any of them."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import NamedTuple

import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.checks import check_at_least, check_is
from ss_lens.generation.loop import check_temperature, choice, steps
from ss_lens.models import forward
from ss_lens.models.chat import (
    DEFAULT_FORMAT,
    ChatFormat,
    Prompt,
    Tokens,
    check_context,
    tokenize,
)
from ss_lens.models.forward import Origin
from ss_lens.models.loading.devices import device_of


class Grown(NamedTuple):
    """An answer after one more token.

    Attributes:
        text: the whole answer so far; a character of several tokens is whole after its last.
        token: the id of the token that was added.
    """

    text: str
    token: int


def stream(
    model: TransformerBridge,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    temperature: float | int = 0,
    seed: int = 0,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> Iterator[Grown]:
    """Answer one prompt, and yield the answer after each of its tokens.

    The last text is that of ``generate(model, [prompt], ...)``. An answer that stops at once yields
    nothing. Nothing remains on the model where the loop is left early. To steer, run the whole loop
    inside :func:`ss_lens.steer`.

    Args:
        model: steered when the loop runs inside :func:`ss_lens.steer`.
        prompt: the user's turn, or a list of turns ``{"role": ..., "content": ...}``.
        max_new_tokens: where the answer is cut off.
        temperature: as in :func:`ss_lens.generate`.
        seed: of the sampling.
        chat: system prompt, date and further arguments of the template.

    Raises:
        UserError: what :func:`ss_lens.generate` raises; of the arguments, at the call.
    """
    check_is("model", model, (TransformerBridge,), "a model from ss_lens.load_model(...)")
    check_is("prompt", prompt, (str, list, tuple), "a text, or a list of turns")
    check_at_least("max_new_tokens", max_new_tokens)
    check_is("temperature", temperature, (Real,), "0 or a positive number")
    check_temperature(temperature)
    check_is("seed", seed, (Integral,), "a whole number such as 0")
    (tokens,) = tokenize(model, [prompt], chat)
    check_context(model, [tokens], [prompt], max_new_tokens)
    return _grown(model, tokens, max_new_tokens, float(temperature), seed)


@torch.inference_mode()
def _grown(
    model: TransformerBridge, tokens: Tokens, max_new_tokens: int, temperature: float, seed: int
) -> Iterator[Grown]:
    (batch,) = forward.batches(
        [tokens], [[0]], side="left", pad_id=forward.pad_id_of(model), device=device_of(model)
    )
    origin = Origin(batch.rows, batch.lengths)
    after_prompt = forward.run(model, batch.ids, batch.mask, keep_cache=True, origin=origin)
    ids: list[int] = []
    choose = choice(temperature, seed, batch.rows)
    for new in steps(model, batch, after_prompt, max_new_tokens, choose):
        for _, token in new:
            ids.append(token)
            yield Grown(model.tokenizer.decode(ids, skip_special_tokens=True), token)
