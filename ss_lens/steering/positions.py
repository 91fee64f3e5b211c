"""Positions: which tokens are steered, and how a forward pass is read to find them.

A pass without a cache is prompt, whatever its tokens are: ``model(ids)`` on a prompt with its
answer has no generated token. What continues a cache is generated. :func:`ss_lens.generate` states
where each prompt ends, so there it does not matter in how many passes a prompt is run. The token
that a pass over a prompt predicts is generated only from the next pass on, where it is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ss_lens.core.checks import check_whole
from ss_lens.core.errors import UserError
from ss_lens.models import forward


@dataclass(frozen=True, eq=False)
class PassTokens:
    """The tokens that one forward pass computes, ``[row, token]`` as the model sees them.

    Attributes:
        rows: which of the given sequences each batch row is.
        index: each token's place in its sequence, counted over the cache and without padding.
        is_token: false on padding and in rows whose answer is over.
        prompt_lengths: how many tokens of each sequence are its prompt.
    """

    rows: tuple[int, ...]
    index: Int[Tensor, "row token"]
    is_token: Bool[Tensor, "row token"]
    prompt_lengths: Int[Tensor, "row"]

    @cached_property
    def is_prompt(self) -> Bool[Tensor, "row token"]:
        return self.is_token & (self.index < self.prompt_lengths.unsqueeze(1))


@dataclass(frozen=True)
class AllPositions:
    """Every token, of the prompt and of what is generated."""


@dataclass(frozen=True)
class PromptOnly:
    """The tokens of the prompt."""

    def select(self, tokens: PassTokens) -> Bool[Tensor, "row token"]:
        return tokens.is_prompt


@dataclass(frozen=True)
class GeneratedOnly:
    """The tokens of the answer.

    The first of them is still chosen by the unsteered model: it is predicted at the last token of
    the prompt, and steered where it is read.
    """

    def select(self, tokens: PassTokens) -> Bool[Tensor, "row token"]:
        return tokens.is_token & ~tokens.is_prompt


@dataclass(frozen=True)
class LastPrompt:
    """The last ``k`` tokens of each row's prompt; all of it where it is shorter.

    Raises:
        UserError: ``k`` is not a whole number from 1 on.
    """

    k: int = 1

    def __post_init__(self) -> None:
        check_whole("k", self.k, at_least=1)

    def select(self, tokens: PassTokens) -> Bool[Tensor, "row token"]:
        return tokens.is_prompt & (tokens.index >= tokens.prompt_lengths.unsqueeze(1) - self.k)


Positions = AllPositions | PromptOnly | GeneratedOnly | LastPrompt
ALL_POSITIONS = AllPositions()


class Watch:
    """Follows a model's forward passes: which tokens the pass under way computes and selects.

    ``model`` is the Hugging Face model itself, whose arguments hold the mask and the cache.

    Attributes:
        cache: what the pass under way was given as its KV cache.
        passes: how many were followed.
        selected_any: whether a token of any of them was selected.
    """

    def __init__(self, model: nn.Module, positions: Positions) -> None:
        self._model = model
        self._signature = inspect.signature(model.forward)
        self._positions = positions
        self._now: tuple[PassTokens, bool | Tensor] | None = None
        self._uncached: Tensor | None = None
        self.cache: object | None = None
        self.passes = 0
        self.selected_any = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the passes inside the block."""
        before = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        after = self._model.register_forward_hook(self._end, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    @property
    def now(self) -> tuple[PassTokens, bool | Bool[Tensor, "row token"]]:
        """The tokens of the pass under way, and which are selected: all, none, or a mask."""
        if self._now is None:
            raise UserError(
                f"{self._positions!r} cannot be told outside of a forward pass of the whole model; "
                "call the model and not its blocks."
            )
        return self._now

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        cache = arguments.get("past_key_values")
        self.cache = cache
        past = 0 if cache is None else int(cache.get_seq_length())
        inputs = arguments.get("input_ids")
        inputs = arguments["inputs_embeds"] if inputs is None else inputs
        origin = forward.origin_of_pass()
        if origin is None and past == 0:
            self._refuse_growth(inputs)
        tokens = _tokens_of(inputs, arguments.get("attention_mask"), past, origin)
        self._now = tokens, self._selection(tokens)

    def _end(self, module: nn.Module, args: tuple, output: object) -> None:
        self._now = self.cache = None

    def _selection(self, tokens: PassTokens) -> bool | Tensor:
        self.passes += 1
        if isinstance(self._positions, AllPositions):
            self.selected_any = True
            return True
        mask = self._positions.select(tokens)
        count = int(mask.sum())
        self.selected_any |= count > 0
        return mask if 0 < count < mask.numel() else count > 0

    def _refuse_growth(self, inputs: Tensor) -> None:
        """Decoding without a cache would make prompt of every answer, silently."""
        previous, self._uncached = self._uncached, inputs
        if previous is None or inputs[:, :-1].shape != previous.shape:
            return
        if torch.equal(inputs[:, :-1], previous):
            raise UserError(
                "the model is run without a KV cache on the sequence of the pass before and one "
                "more token, so what is prompt and what is answer cannot be told; generate with "
                "the cache (use_past_kv_cache=True), or steer each of these passes on its own."
            )


def _tokens_of(
    inputs: Tensor, mask: Tensor | None, past: int, origin: forward.Origin | None
) -> PassTokens:
    rows, new = inputs.shape[:2]
    if mask is None:
        mask = torch.ones(rows, past + new, dtype=torch.long, device=inputs.device)
    if mask.shape != (rows, past + new):
        raise UserError(
            f"the attention mask has shape {tuple(mask.shape)}, so padding cannot be told; "
            f"expected {(rows, past + new)}: a row per sequence, a column per cached or new token."
        )
    attended = mask.bool()
    index = forward.position_ids(attended.long())[:, past:]
    is_token = attended[:, past:]
    if origin is None:
        # What is in the cache already; or, in a first pass, everything.
        known = attended if past == 0 else attended[:, :past]
        return PassTokens(tuple(range(rows)), index, is_token, known.sum(dim=1))
    if origin.finished is not None:
        is_token = is_token & ~origin.finished.unsqueeze(1)
    return PassTokens(origin.rows, index, is_token, origin.prompt_lengths)
