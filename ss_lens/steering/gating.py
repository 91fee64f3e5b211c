"""Gating: what a gate decides of each row of a pass, and which later passes that holds for."""

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
from ss_lens.steering.gates import Gate
from ss_lens.steering.positions import PassTokens, Watch
from ss_lens.steering.trace import Trace


@dataclass(frozen=True, eq=False)
class _Decision:
    """For which rows a gate is open; the rows are named as :class:`PassTokens` names them."""

    rows: tuple[int, ...]
    is_open: Bool[Tensor, "row"]

    def of(self, rows: tuple[int, ...]) -> Bool[Tensor, "row"]:
        if rows == self.rows:
            return self.is_open
        return self.is_open[[self.rows.index(row) for row in rows]]


_MADE: WeakKeyDictionary[object, dict[Gate, _Decision]] = WeakKeyDictionary()
"""By the KV cache of the prompts that were read: what continues it is their answer."""


class Gating:
    """Follows one gate through the passes of a model.

    Args:
        gate: what is asked.
        watch: follows the same passes, and is entered by whoever places the hooks.
        trace: keeps what is decided.

    Attributes:
        keeps_any: whether a decision was kept for passes to come.
    """

    def __init__(self, gate: Gate, watch: Watch, trace: Trace | None) -> None:
        self._gate = gate
        self._watch = watch
        self._trace = trace
        self._made: _Decision | None = None
        self._mask: tuple[PassTokens, bool | Tensor] | None = None
        self.keeps_any = False

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keep, inside the block, each decision with the KV cache of its pass."""
        after = model.register_forward_hook(self._end, always_call=True)
        try:
            yield
        finally:
            after.remove()

    def read(self, h: Float[Tensor, "row token d_model"]) -> None:
        """Decide, where ``h`` at the gate's site holds the last token of the prompts."""
        tokens, _ = self._watch.now
        is_end = tokens.is_token & (tokens.index == tokens.prompt_lengths.unsqueeze(1) - 1)
        ends = int(is_end.any(dim=1).sum())
        if ends < len(tokens.rows):
            if ends or tokens.is_prompt.any():
                raise UserError(
                    f"this pass holds the end of {ends} of {len(tokens.rows)} prompts, and a gate "
                    "decides there whether what comes before is steered; expected whole prompts in "
                    "one pass. Run them so, or steer with positions=GeneratedOnly()."
                )
            return
        lines = torch.arange(len(tokens.rows), device=h.device)
        last = h[lines, is_end.int().argmax(dim=1)].float()
        projection = last @ self._gate.direction.to(h.device)
        is_open = projection > self._gate.threshold
        self._made = _Decision(tokens.rows, is_open)
        if self._trace is not None:
            gate = self._gate
            self._trace.record_gate(tokens, gate.site, projection, gate.threshold, is_open)

    def restricted(
        self, tokens: PassTokens, selected: bool | Bool[Tensor, "row token"]
    ) -> bool | Bool[Tensor, "row token"]:
        """Those of the selected tokens whose row the gate is open for: all, none, or a mask."""
        if selected is False:
            return False
        if self._mask is None or self._mask[0] is not tokens:
            rows = self._decision(tokens).unsqueeze(1)
            mask = (rows & selected) if isinstance(selected, Tensor) else rows
            mask = mask.expand(tokens.index.shape)
            count = int(mask.sum())
            self._mask = tokens, mask if 0 < count < mask.numel() else count > 0
        return self._mask[1]

    def _decision(self, tokens: PassTokens) -> Bool[Tensor, "row"]:
        made, cache = self._made, self._watch.cache
        if made is None and cache is not None:
            made = _MADE.get(cache, {}).get(self._gate)
        told = forward.origin_of_pass() is not None
        known = made is not None and (
            made.rows == tokens.rows or (told and {*tokens.rows} <= {*made.rows})
        )
        if made is None or not known:
            raise UserError(
                f"the gate at {self._gate.site} has not read the end of the prompts that this pass "
                f"continues ({len(tokens.rows)} rows), so it is neither open nor closed; expected "
                "their pass with the same gate. Run the prompts inside steer(..., when=gate) too."
            )
        return made.of(tokens.rows)

    def _end(self, module: nn.Module, args: tuple, output: object) -> None:
        cache = getattr(output, "past_key_values", None)
        if self._made is not None and cache is not None:
            _MADE.setdefault(cache, {})[self._gate] = self._made
            self.keeps_any = True
        self._made = self._mask = None
