"""Gating: what a gate decides of each row of a pass, and which tokens that leaves to steer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ss_lens.core.errors import UserError
from ss_lens.steering.decisions import Decisions, last_of_prompts
from ss_lens.steering.gates import Gate
from ss_lens.steering.positions import PassTokens, Watch
from ss_lens.steering.trace import Trace

_WHY = "a gate decides there whether what comes before is steered"
_REMEDY = "Run them so, or steer with positions=GeneratedOnly()."


class Gating:
    """Follows one gate through the passes of a model.

    Args:
        gate: what is asked.
        watch: follows the same passes, and is entered by whoever places the hooks.
        trace: keeps what is decided.
    """

    def __init__(self, gate: Gate, watch: Watch, trace: Trace | None) -> None:
        self._gate = gate
        self._watch = watch
        self._trace = trace
        self._decisions = Decisions(gate, watch)
        self._mask: tuple[PassTokens, bool | Tensor] | None = None

    @property
    def keeps_any(self) -> bool:
        """Whether a decision was kept for passes to come."""
        return self._decisions.keeps_any

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keep, inside the block, each decision with the KV cache of its pass."""
        with self._decisions.following(model):
            try:
                yield
            finally:
                self._mask = None

    def read(self, h: Float[Tensor, "row token d_model"]) -> None:
        """Decide, where ``h`` at the gate's site holds the last token of the prompts."""
        tokens, _ = self._watch.now
        last = last_of_prompts(tokens, h, _WHY, _REMEDY)
        if last is None:
            return
        projection = last @ self._gate.direction.to(h.device)
        is_open = projection > self._gate.threshold
        self._decisions.make(tokens.rows, is_open)
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
            is_open = self._decisions.at(tokens)
            if is_open is None:
                raise UserError(
                    f"the gate at {self._gate.site} has not read the end of the prompts that this "
                    f"pass continues ({len(tokens.rows)} rows), so it is neither open nor closed; "
                    "expected their pass with the same gate. Run the prompts inside "
                    "steer(..., when=gate) too."
                )
            self._mask = tokens, of_rows(is_open, tokens, selected)
        return self._mask[1]


def of_rows(
    rows: Bool[Tensor, "row"], tokens: PassTokens, selected: bool | Bool[Tensor, "row token"]
) -> bool | Bool[Tensor, "row token"]:
    """The selected tokens of these rows: all, none, or a mask."""
    lines = rows.unsqueeze(1)
    mask = (lines & selected) if isinstance(selected, Tensor) else lines
    mask = mask.expand(tokens.index.shape)
    count = int(mask.sum())
    return mask if 0 < count < mask.numel() else count > 0
