"""How an edit of activations is computed: in full precision, one block of vectors after another.

Every edit reads its input more than once. Of a block that fits the processor's cache the readings
after the first are cheap, and its intermediate results never reach main memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.core.errors import UserError

Strength = float | int | Float[Tensor, ""] | Float[Tensor, "row"]
"""One number for all rows, or one per row of the leading (batch) axis of ``h``."""

Amount = float | complex | Tensor
"""A strength made ready for the arithmetic: a number, or one per row."""

BLOCK = 2**17
"""Numbers in a block: 512 KiB of float32, small enough for the allocator to hold on to as well."""


def wide_dtype(h: Tensor) -> torch.dtype:
    """The dtype in which edits of ``h`` are computed: its own, but at least float32."""
    return torch.promote_types(h.dtype, torch.float32)


def widened(h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return h.to(wide_dtype(h))


def per_row(strength: Strength, h: Float[Tensor, "*batch d_model"]) -> float | Float[Tensor, "row"]:
    """A float, or one strength per row of ``h`` in the dtype of the computation.

    Raises:
        UserError: the number of strengths is not the number of rows.
    """
    if not isinstance(strength, Tensor) or strength.ndim == 0:
        return float(strength)
    if h.ndim < 2 or strength.shape[0] != h.shape[0]:
        raise UserError(
            f"got {strength.shape[0]} strengths for activations of shape {tuple(h.shape)}; "
            "expected one number, or one per row of the batch."
        )
    return strength.to(h.device, wide_dtype(h))


def edited(
    h: Float[Tensor, "*batch d_model"], edit: Callable[..., Tensor], *strengths: Amount
) -> Float[Tensor, "*batch d_model"]:
    """``edit(vectors, *strengths)`` of the vectors of ``h``, block by block.

    ``edit`` gets the vectors in at least float32 and as many strengths of each kind, where there is
    one per row, else the number itself. Gradients flow, and then there is one block only: a block
    costs the backward pass as much as the whole does. Elsewhere than on a CPU a block saves nothing
    and costs kernel launches.
    """
    flat = h.reshape(-1, h.shape[-1])
    spread = [_per_vector(s, h) if isinstance(s, Tensor) else s for s in strengths]
    size = max(1, BLOCK // max(1, h.shape[-1]))
    whole = len(flat) <= size or h.device.type != "cpu"
    with full_precision(h):
        if whole or _wants_gradient(h, *strengths):
            return edit(widened(flat), *spread).to(h.dtype).view(h.shape)
        out = torch.empty_like(flat)
        for start in range(0, len(flat), size):
            block = slice(start, start + size)
            cut = (s[block] if isinstance(s, Tensor) else s for s in spread)
            out[block] = edit(widened(flat[block]), *cut)
    return out.view(h.shape)


def full_precision(h: Tensor) -> AbstractContextManager:
    """Keeps autocast, where it is on, from computing products in half precision."""
    if torch.is_autocast_enabled(h.device.type):
        return torch.autocast(h.device.type, enabled=False)
    return nullcontext()


def _per_vector(strengths: Tensor, h: Tensor) -> Tensor:
    per_token = strengths.reshape(-1, *[1] * (h.ndim - 2))
    return per_token.expand(h.shape[:-1]).reshape(-1)


def _wants_gradient(*values: Amount) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)
