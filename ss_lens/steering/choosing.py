"""Choosing: which sites each row of a pass is steered at, read in a pass without the edits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.errors import UserError
from ss_lens.models.block import hooks_on
from ss_lens.models.sites import Site
from ss_lens.steering.decisions import Decisions, last_of_prompts
from ss_lens.steering.gating import of_rows
from ss_lens.steering.positions import PassTokens, Watch
from ss_lens.steering.prompt_sites import PromptSites
from ss_lens.steering.trace import Trace

_WHY = "the sites that each is steered at are chosen there"
_REMEDY = "Run them so."


class Choosing:
    """Follows per-prompt sites through the passes of a model.

    Before a pass that begins sequences it runs the same pass once more, in which the hooks of the
    block change nothing and show what they see.

    Args:
        sites: what is chosen from, and how.
        model: whose passes.
        watch: follows the same passes, and is entered after this.
        trace: keeps what is chosen.

    Attributes:
        is_reading: whether the pass under way is one to read from.
        readings: how many of those there were.
        n_hooks: how many hooks the block placed; set before any pass.
    """

    def __init__(
        self, sites: PromptSites, model: TransformerBridge, watch: Watch, trace: Trace | None
    ) -> None:
        self._sites = sites
        self._model = model
        self._watch = watch
        self._trace = trace
        self._decisions = Decisions(sites, watch)
        self._seen: dict[Site, Float[Tensor, "row d_model"]] = {}
        self._rows: tuple[int, ...] = ()
        self._untold: tuple[Tensor, Tensor] | None = None
        self.is_reading = False
        self.readings = 0
        self.n_hooks = 0

    @property
    def keeps_any(self) -> bool:
        """Whether a choice was kept for passes to come."""
        return self._decisions.keeps_any

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Read, inside the block, before each pass that begins sequences.

        ``model`` is the Hugging Face model itself, as in :class:`Watch`.
        """
        before = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        try:
            with self._decisions.following(model):
                yield
        finally:
            before.remove()
            self._seen, self._untold = {}, None

    def read(self, site: Site, h: Float[Tensor, "row token d_model"]) -> None:
        """Keep ``h`` at the last token of each prompt."""
        tokens, _ = self._watch.now
        last = last_of_prompts(tokens, h, _WHY, _REMEDY)
        if last is not None:
            self._seen[site], self._rows = last, tokens.rows

    def restricted(
        self, site: Site, tokens: PassTokens, selected: bool | Bool[Tensor, "row token"]
    ) -> bool | Bool[Tensor, "row token"]:
        """Those of the selected tokens whose row is steered at ``site``: all, none, or a mask."""
        if self._untold is not None and self._trace is not None:
            self._trace.record_sites(tokens, self._sites.sites, *self._untold)
        self._untold = None
        if selected is False:
            return False
        chosen = self._decisions.at(tokens)
        if chosen is None:
            raise UserError(
                f"the prompts that this pass continues ({len(tokens.rows)} rows) were not read, so "
                "the sites that they are steered at are not chosen; expected their pass with the "
                "same PromptSites. Run the prompts inside steer(..., sites=...) too."
            )
        return of_rows(chosen[:, self._sites.sites.index(site)], tokens, selected)

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.is_reading:
            return
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        cache = given.arguments.pop("past_key_values", None)
        if cache is not None and int(cache.get_seq_length()) > 0:
            return
        self._check_alone()
        given.arguments.pop("use_cache", None)
        self._seen, self.is_reading = {}, True
        try:
            with torch.no_grad():
                module(*given.args, **{**given.kwargs, "use_cache": False})
        finally:
            self.is_reading = False
        self.readings += 1
        self._choose()

    def _choose(self) -> None:
        sites = self._sites
        if len(self._seen) < len(sites.sites):
            missing = [str(site) for site in sites.sites if site not in self._seen]
            raise UserError(
                f"the pass over the prompts stopped before {missing[0]}, so the sites that they "
                "are steered at cannot be chosen; expected a pass through all layers. Run the "
                "whole model."
            )
        weights = sites.weights(torch.stack([self._seen[site] for site in sites.sites], dim=1))
        chosen = sites.chosen(weights)
        self._decisions.make(self._rows, chosen)
        self._untold = weights, chosen

    def _check_alone(self) -> None:
        found = hooks_on(self._model)
        if found != self.n_hooks:
            raise UserError(
                f"{found - self.n_hooks} hooks beside those of steer(..., sites=...) act on the "
                "model, so the pass that chooses the sites would not be unsteered; expected none. "
                "Leave the other block (steer, sweep_angles, capture), or steer without sites=."
            )
