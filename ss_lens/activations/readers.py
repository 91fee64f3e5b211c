"""Which tokens of a batch are read: one counted from the end, all of them, or a span of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.models.forward import Batch

Reader = Callable[[Tensor, Batch], Tensor]
"""``h [row, token, d_model]`` and its batch, padded on the right → ``[row, d_model]``."""


def last_token_reader(from_end: int) -> Reader:
    """Read the token ``from_end`` places from the end, 1 for the last."""

    def read(h: Tensor, batch: Batch) -> Tensor:
        rows = torch.arange(len(batch.rows), device=h.device)
        return h[rows, batch.lengths - from_end].float()

    return read


def sum_reader(h: Float[Tensor, "row token d_model"], batch: Batch) -> Float[Tensor, "row d_model"]:
    """Sum over all tokens of a row."""
    return (h.float() * batch.mask.unsqueeze(-1)).sum(dim=1)


def span_mean_reader(spans: Sequence[tuple[int, int]]) -> Reader:
    """Average over a span of tokens of each prompt, given as first and one after the last."""
    bounds = torch.tensor(spans)

    def read(h: Tensor, batch: Batch) -> Tensor:
        start, stop = bounds[list(batch.rows)].to(h.device).T.unsqueeze(-1)
        place = torch.arange(h.shape[1], device=h.device)
        inside = ((place >= start) & (place < stop)).unsqueeze(-1)
        return (h.float() * inside).sum(dim=1) / inside.sum(dim=1)

    return read
