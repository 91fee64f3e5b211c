"""Passes over whole sequences that run what these start with only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.generation import reuse
from ss_lens.generation.reuse import Reach, SharedPrefix
from ss_lens.models import forward
from ss_lens.models.block import kept_apart
from ss_lens.models.chat import Tokens, shared_prefix_length
from ss_lens.models.forward import Batch, Origin
from ss_lens.steering.positions import ALL_POSITIONS


def shared_tokens(model: TransformerBridge, prompts: Sequence[Tokens]) -> Tokens:
    """What all prompts start with and the hooks in force allow to be run once for all of them.

    Nothing where a hook may treat rows or passes differently, where the model keeps more than keys,
    or where running it apart costs as much as it saves.
    """
    keep = kept_apart(model) if reuse.keeps_every_key(model) else None
    if keep is None or not prompts:
        return ()
    length = shared_prefix_length(prompts, keep)
    return prompts[0][:length] if length * (len(prompts) - 1) > forward.PRICE_OF_A_BATCH else ()


@dataclass(frozen=True, eq=False)
class SharedStart:
    """Keys and values of what several prompts start with, made under the hooks in force.

    Its passes must run under the same hooks.
    """

    prefix: SharedPrefix | None

    @classmethod
    def of(cls, model: TransformerBridge, prompts: Sequence[Tokens]) -> SharedStart:
        """Run what the prompts share."""
        ids = shared_tokens(model, prompts)
        # No edit of its own: to this pass, what the hooks make of the model is the model.
        alone = Reach.of(model, (), ALL_POSITIONS)
        return cls(reuse.run_prefix(model, ids, 1, alone))

    def logits(
        self,
        model: TransformerBridge,
        batch: Batch,
        prompt_lengths: Int[Tensor, "row"],
        keep: int,
    ) -> Float[Tensor, "row kept vocab"]:
        """Logits of the last ``keep`` columns of a left-padded batch of whole sequences.

        The sequences begin with the prompts that the start was made of, of ``prompt_lengths``.
        """
        origin, cache, done = Origin(batch.rows, prompt_lengths), None, 0
        if self.prefix is not None:
            done, padding = self.prefix.length, batch.ids.shape[1] - batch.lengths
            every = torch.arange(len(padding), device=padding.device)
            first = padding.new_zeros(len(padding))
            cache = self.prefix.cache(model, padding, first, every, depth=0)
        ids = batch.ids[:, done:]
        return forward.run_all(model, ids, batch.mask, keep=keep, cache=cache, origin=origin)
