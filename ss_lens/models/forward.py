"""The one place that runs the model: padded batches, the shared prefix, the KV cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.models.chat import Tokens
from ss_lens.models.loading.devices import device_of

Row = TypeVar("Row")
PRICE_OF_A_BATCH = 20
"""What a forward pass of a small model costs beside its tokens, in tokens."""


@dataclass(frozen=True)
class Batch:
    """Token rows of one padded forward pass; ``rows`` says which sequences they are."""

    rows: tuple[int, ...]
    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]

    @property
    def lengths(self) -> Int[Tensor, "row"]:
        return self.mask.sum(dim=1)


@dataclass(frozen=True, eq=False)
class Origin:
    """What the batch rows of a pass are; the tensors of the pass itself do not say it.

    Attributes:
        rows: which of the given sequences each batch row is.
        prompt_lengths: tokens of each row's prompt, the shared prefix included and padding not;
            whatever follows in the row's sequence is its answer.
        finished: rows whose answer is over, computed along with the others; ``None`` where none is.
    """

    rows: tuple[int, ...]
    prompt_lengths: Int[Tensor, "row"]
    finished: Bool[Tensor, "row"] | None = None


_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


def origin_of_pass() -> Origin | None:
    """The origin that :func:`run` was given for the pass under way, if it was."""
    return _origin.get()


@dataclass(frozen=True)
class Prefix:
    """The KV cache of tokens that every sequence starts with, computed once."""

    length: int
    cache: Any

    def repeated(self, rows: int) -> Any:
        """An independent copy of the cache for ``rows`` rows (a forward pass extends it)."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def order_by_length(tokens: Sequence[Tokens]) -> list[int]:
    """Indices from the shortest to the longest sequence, ties in the given order."""
    return sorted(range(len(tokens)), key=lambda i: len(tokens[i]))


def equal_groups(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    """``rows`` in groups of ``size``; the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def thrifty_groups(tokens: Sequence[Tokens], rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """Rows of ascending length in groups of at most ``size`` that cost the least work.

    Work is counted in tokens, padding included, plus :data:`PRICE_OF_A_BATCH`. Dynamic programming
    over where the last batch begins.
    """
    cost, begin = [0], [0]
    for end in range(1, len(rows) + 1):
        width = len(tokens[rows[end - 1]])
        costs = {
            i: cost[i] + width * (end - i) + PRICE_OF_A_BATCH
            for i in range(max(0, end - size), end)
        }
        best = min(costs, key=costs.__getitem__)
        cost.append(costs[best])
        begin.append(best)
    groups, end = [], len(rows)
    while end:
        groups.append(rows[begin[end] : end])
        end = begin[end]
    return groups[::-1]


def batches(
    tokens: Sequence[Tokens],
    groups: Sequence[Sequence[int]],
    *,
    side: Literal["left", "right"],
    pad_id: int,
    device: str | torch.device,
) -> Iterator[Batch]:
    """One padded batch per group of rows."""
    for chosen in map(tuple, groups):
        width = max(len(tokens[row]) for row in chosen)
        ids = torch.full((len(chosen), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(chosen):
            n = len(tokens[row])
            where = slice(0, n) if side == "right" else slice(width - n, width)
            ids[line, where] = torch.tensor(tokens[row])
            mask[line, where] = 1
        yield Batch(chosen, ids.to(device), mask.to(device))


def pad_id_of(model: TransformerBridge) -> int:
    """A token id for padding; its value never matters because padding is masked."""
    pad = model.tokenizer.pad_token_id
    return 0 if pad is None else pad


def position_ids(mask: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """Positions counted from each row's first token: padding must not move it."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def run(
    model: TransformerBridge,
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row past_and_token"],
    cache: Any = None,
    keep_cache: bool = False,
    origin: Origin | None = None,
) -> tuple[Float[Tensor, "row vocab"], Any]:
    """One forward pass; returns the logits of the last column and the KV cache.

    ``mask`` also covers what is in ``cache``. The unembedding runs on one column only. Steering
    learns from ``origin`` which tokens are prompt; without it, a pass without a cache is prompt and
    what continues a cache is answer (:mod:`ss_lens.steering.positions`).
    """
    past = {} if cache is None else {"past_key_values": cache}
    use_cache = keep_cache or cache is not None
    logits, grown = _pass(model, ids, mask, origin, 1, use_cache=use_cache, **past)
    return logits[:, -1], grown


def compute_prefix(model: TransformerBridge, ids: Tokens) -> Prefix:
    """Run the shared tokens once and keep their KV cache.

    Inside a block that steers the last k tokens of each prompt, none of these may be among them.
    """
    row = torch.tensor([ids], device=device_of(model))
    # Each prompt continues from here to its own end, which is out of reach.
    origin = Origin((0,), row.new_tensor([2**31]))
    _, cache = run(model, row, torch.ones_like(row), keep_cache=True, origin=origin)
    return Prefix(len(ids), cache)


def run_after(model: TransformerBridge, prefix: Prefix | None, batch: Batch) -> None:
    """Run a right-padded batch of what follows ``prefix``, for the sake of the hooks."""
    if prefix is None:
        run(model, batch.ids, batch.mask, origin=Origin(batch.rows, batch.lengths))
        return
    before = batch.mask.new_ones(len(batch.rows), prefix.length)
    run(
        model,
        batch.ids,
        torch.cat((before, batch.mask), dim=1),
        cache=prefix.repeated(len(batch.rows)),
        origin=Origin(batch.rows, prefix.length + batch.lengths),
    )


def run_all(
    model: TransformerBridge,
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row past_and_token"],
    *,
    keep: int,
    cache: Any = None,
    origin: Origin | None = None,
) -> Float[Tensor, "row kept vocab"]:
    """One forward pass; returns the logits of the last ``keep`` columns.

    ``mask``, ``cache`` and ``origin`` are as in :func:`run`. The unembedding runs on those columns
    only.
    """
    past = {} if cache is None else {"past_key_values": cache}
    return _pass(model, ids, mask, origin, keep, use_cache=cache is not None, **past)[0]


def _pass(
    model: TransformerBridge,
    ids: Int[Tensor, "row token"],
    mask: Int[Tensor, "row past_and_token"],
    origin: Origin | None,
    keep: int,
    **options: Any,
) -> tuple[Float[Tensor, "row kept vocab"], Any]:
    width = ids.shape[1]
    # As indices, not as a number: a slice is not contiguous, and PyTorch then multiplies each row
    # by the unembedding on its own; in bfloat16 on a CPU after copying it for each row.
    columns = torch.arange(-min(keep, width), 0, device=ids.device)
    token = _origin.set(origin)
    try:
        return model(
            ids,
            return_type="logits_and_cache",
            attention_mask=mask,
            position_ids=position_ids(mask)[:, -width:],
            logits_to_keep=columns,
            output_attentions=False,
            **options,
        )
    finally:
        _origin.reset(token)
