"""The decoding loop: from the logits after each prompt to the tokens of each answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from ss_lens.core.checks import is_finite
from ss_lens.core.errors import UserError
from ss_lens.models import forward
from ss_lens.models.chat import Tokens
from ss_lens.models.forward import Batch, Origin
from ss_lens.models.loading.devices import device_of

Choice = Callable[[Tensor], Tensor]
"""Logits ``[row, vocab]`` → token ids ``[row]``."""


SMALLEST_TEMPERATURE = 1e-30
"""Logits divided by less exceed the range of float32."""


def check_temperature(temperature: float | int) -> None:
    """Raise a :class:`UserError` for a temperature at which nothing can be drawn."""
    if not (is_finite(temperature) and temperature >= 0):
        raise UserError(
            f"temperature must be 0 or a positive number; got {temperature}. Write 0 for greedy "
            "decoding."
        )
    if 0 < temperature < SMALLEST_TEMPERATURE:
        raise UserError(
            f"temperature must be 0 or at least {SMALLEST_TEMPERATURE:g}; got {temperature}, at "
            "which logits exceed the range of float32. Write 0 for greedy decoding."
        )


@torch.inference_mode()
def continue_tokens(
    model: TransformerBridge,
    tokens: Sequence[Tokens],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float | int,
    seed: int,
    bar: tqdm,
) -> list[list[int]]:
    """Return the tokens that the model, steered or not, appends to each of ``tokens``.

    Args:
        model: steered when called inside :func:`ss_lens.steer`.
        tokens: whole prompts, template included.
        max_new_tokens: where an answer is cut off.
        batch_size: prompts per batch.
        temperature: 0 is greedy.
        seed: of the sampling; each prompt draws with a generator of its own, so that a sample does
            not depend on its neighbours.
        bar: advances by ``max_new_tokens`` steps per batch.

    Raises:
        UserError: logits that are not finite.
    """
    answers: list[list[int]] = [[] for _ in tokens]
    groups = forward.equal_groups(forward.order_by_length(tokens), batch_size)
    for batch in forward.batches(
        tokens, groups, side="left", pad_id=forward.pad_id_of(model), device=device_of(model)
    ):
        choose = choice(temperature, seed, batch.rows)
        origin = Origin(batch.rows, batch.lengths)
        after_prompt = forward.run(model, batch.ids, batch.mask, keep_cache=True, origin=origin)
        new = decode(model, batch, after_prompt, max_new_tokens, choose, bar)
        for row, ids in zip(batch.rows, new, strict=True):
            answers[row] = ids
    return answers


def greedy(logits: Float[Tensor, "row vocab"]) -> Int[Tensor, "row"]:
    """Return the likeliest token of each row."""
    return logits.argmax(dim=-1)


def check_logits(model: TransformerBridge, logits: Float[Tensor, "row vocab"]) -> None:
    """Raise where a row's logits hold NaN or +∞, or nothing but −∞.

    A single −∞ is a masked token. NaN wins every maximum, so one reduction tells.

    Raises:
        UserError: such a row.
    """
    broken = ~torch.isfinite(logits.amax(dim=-1))
    if broken.any():
        raise UserError(
            f"{int(broken.sum())} of {len(broken)} rows of logits of {model.cfg.model_name} are "
            "not finite, expected finite numbers: no token can be chosen or scored. Check the "
            "weights, adapters and the strength of the steering, or load the model in float32 or "
            "bfloat16."
        )


def choice(temperature: float | int, seed: int, rows: Sequence[int]) -> Choice:
    """Greedy at temperature 0; above it, each row draws with a generator of its own."""
    if temperature == 0:
        return greedy
    return _sampler(temperature, [derive_generator(seed, row) for row in rows])


def _sampler(temperature: float | int, generators: Sequence[torch.Generator]) -> Choice:
    def draw(logits: Tensor) -> Tensor:
        probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities, generators, strict=True)
        ]
        return torch.cat(drawn).to(logits.device)

    return draw


def _as_it_is(lines: Sequence[int]) -> AbstractContextManager[object]:
    return nullcontext()


def _nothing(lines: Sequence[int]) -> None:
    """What there is to do where no rows are steered apart."""


def decode(
    model: TransformerBridge,
    batch: Batch,
    after_prompt: tuple[Tensor, Any],
    max_new_tokens: int,
    choose: Choice,
    bar: tqdm,
    steered: Callable[[Sequence[int]], AbstractContextManager[object]] = _as_it_is,
    leave: bool = False,
) -> list[list[int]]:
    """Return the new token ids of each row, up to and without the first stop token.

    The passes over the answers run inside ``steered(lines)``, where ``lines`` are the batch rows
    that they compute: all of them, unless those whose answer is over may ``leave``.
    """
    new: list[list[int]] = [[] for _ in batch.rows]
    with ExitStack() as edit:

        def begin(lines: Sequence[int]) -> None:
            edit.close()
            edit.enter_context(steered(lines))

        of_steps = steps(model, batch, after_prompt, max_new_tokens, choose, begin, leave)
        left = max_new_tokens
        for tokens in of_steps:
            for line, token in tokens:
                new[line].append(token)
            bar.update(1)
            left -= 1
        bar.update(left)
    return new


def steps(
    model: TransformerBridge,
    batch: Batch,
    after_prompt: tuple[Tensor, Any],
    max_new_tokens: int,
    choose: Choice,
    begin: Callable[[Sequence[int]], None] = _nothing,
    leave: bool = False,
) -> Iterator[list[tuple[int, int]]]:
    """Yield, step by step, the batch row and the new token of each answer that goes on.

    Before the first pass over the answers, and wherever rows leave, ``begin`` is told the batch
    rows that are computed from there on. The generator itself places no hook: it may be left
    unfinished.
    """
    stops = torch.tensor(stop_ids(model), device=device_of(model))
    logits, cache = after_prompt
    lines = torch.arange(len(batch.rows), device=batch.ids.device)
    mask, lengths = batch.mask, batch.lengths
    running, chosen = torch.ones_like(lines, dtype=torch.bool), lines
    for step in range(max_new_tokens):
        if step > 0:
            leaving = leave and _worth_leaving(running)
            if leaving:
                kept = running.nonzero()[:, 0]
                lines, mask, lengths = lines[kept], mask[kept], lengths[kept]
                running, chosen = running[kept], chosen[kept]
                for layer in cache.layers:
                    layer.reorder_cache(kept)
            if leaving or step == 1:
                begin(lines.tolist())
            rows = tuple(batch.rows[line] for line in lines.tolist())
            mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
            origin = Origin(rows, lengths, finished=~running)
            logits, cache = forward.run(
                model, chosen.unsqueeze(1), mask, cache, keep_cache=True, origin=origin
            )
        check_logits(model, logits)
        chosen = choose(logits)
        running = running & ~torch.isin(chosen, stops)
        of_step = zip(lines.tolist(), chosen.tolist(), running.tolist(), strict=True)
        yield [(line, token) for line, token, is_answer in of_step if is_answer]
        if not running.any():
            return


def _worth_leaving(running: Tensor) -> bool:
    """Whether to cut the batch, which costs about as much as a step over 3 rows of 48 does."""
    finished = int((~running).sum())
    return finished > 0 and 16 * finished >= len(running)


def stop_ids(model: TransformerBridge) -> list[int]:
    """Return the tokens that end an answer, by the model's configuration or its tokenizer."""
    configured = cast(Any, model.original_model).generation_config.eos_token_id
    ids = {*(configured if isinstance(configured, list) else [configured])}
    ids = (ids | {model.tokenizer.eos_token_id}) - {None}
    return sorted(ids)
