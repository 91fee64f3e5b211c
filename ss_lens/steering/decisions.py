"""What was decided of each row at the end of its prompt, and which later passes that holds for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ss_lens.core.errors import UserError
from ss_lens.models import forward
from ss_lens.steering.positions import PassTokens, Watch


@dataclass(frozen=True, eq=False)
class _Decision:
    """One value per row; the rows are named as :class:`PassTokens` names them."""

    rows: tuple[int, ...]
    values: Bool[Tensor, "row *what"]

    def of(self, rows: tuple[int, ...]) -> Bool[Tensor, "row *what"]:
        if rows == self.rows:
            return self.values
        return self.values[[self.rows.index(row) for row in rows]]


_MADE: WeakKeyDictionary[object, dict[object, _Decision]] = WeakKeyDictionary()
"""By the KV cache of the prompts that were read: what continues it is their answer."""


class Decisions:
    """Keeps what one decider says of the prompts of each pass for the passes that continue them.

    Args:
        by: who decides; another one's decisions are not its own.
        watch: follows the same passes, and is entered by whoever places the hooks.

    Attributes:
        keeps_any: whether a decision was kept for passes to come.
    """

    def __init__(self, by: object, watch: Watch) -> None:
        self._by = by
        self._watch = watch
        self._made: _Decision | None = None
        self.keeps_any = False

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keep, inside the block, each decision with the KV cache of its pass."""
        after = model.register_forward_hook(self._end, always_call=True)
        try:
            yield
        finally:
            after.remove()

    def make(self, rows: tuple[int, ...], values: Bool[Tensor, "row *what"]) -> None:
        """Decide of the rows of the pass under way."""
        self._made = _Decision(rows, values)

    def at(self, tokens: PassTokens) -> Bool[Tensor, "row *what"] | None:
        """What holds for the rows of a pass; ``None`` where their prompts were not read."""
        made, cache = self._made, self._watch.cache
        if made is None and cache is not None:
            made = _MADE.get(cache, {}).get(self._by)
        if made is None:
            return None
        told = forward.origin_of_pass() is not None
        known = made.rows == tokens.rows or (told and {*tokens.rows} <= {*made.rows})
        return made.of(tokens.rows) if known else None

    def _end(self, module: nn.Module, args: tuple, output: object) -> None:
        cache = getattr(output, "past_key_values", None)
        if self._made is not None and cache is not None:
            _MADE.setdefault(cache, {})[self._by] = self._made
            self.keeps_any = True
        self._made = None


def last_of_prompts(
    tokens: PassTokens, h: Float[Tensor, "row token d_model"], why: str, remedy: str
) -> Float[Tensor, "row d_model"] | None:
    """``h`` at the last token of each prompt; ``None`` in a pass over answers alone.

    Raises:
        UserError: the pass holds prompts in part; ``why`` says what cannot be decided then.
    """
    is_end = tokens.is_token & (tokens.index == tokens.prompt_lengths.unsqueeze(1) - 1)
    ends = int(is_end.any(dim=1).sum())
    if ends == len(tokens.rows):
        lines = torch.arange(len(tokens.rows), device=h.device)
        return h[lines, is_end.int().argmax(dim=1)].float()
    if ends or tokens.is_prompt.any():
        raise UserError(
            f"this pass holds the end of {ends} of {len(tokens.rows)} prompts, and {why}; expected "
            f"whole prompts in one pass. {remedy}"
        )
    return None
