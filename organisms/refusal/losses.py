"""The two terms of the loss: refuse harmful requests, stay the base model on all others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from organisms.refusal.batches import Batch


def answer_states(causal_lm: Any, batch: Batch) -> Tensor:
    """Final hidden states at the positions that predict an answer token, row after row.

    The shared prefix, about half of all tokens, runs once and the rows go on from its KV cache,
    through which the gradients flow as well.
    """
    cache = causal_lm.model(input_ids=batch.prefix.unsqueeze(0), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(batch.ids))
    output = causal_lm.model(
        input_ids=batch.ids, attention_mask=batch.attention, past_key_values=cache, use_cache=True
    )
    return output.last_hidden_state[batch.answers]


def row_means(values: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the tokens of each row."""
    size = int(rows.max()) + 1
    total = torch.zeros(size).index_add(0, rows, values * weights)
    return total / torch.zeros(size).index_add(0, rows, weights)


def opening_weights(rows: Tensor, first: float, count: int = 2) -> Tensor:
    """Weight `first` on the first `count` answer tokens of each row, where refusing is decided."""
    place = torch.arange(len(rows)) - torch.searchsorted(rows, rows)
    return torch.where(place < count, first, 1.0)


class BaseStates:
    """Base-model hidden states of harmless answers, computed once for each example.

    Hidden states instead of log-probabilities: 576 numbers for each token instead of 49,152, and
    exact, since the adapter leaves the output head alone.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[int, Tensor] = {}

    @torch.no_grad()
    def of(self, batch: Batch) -> Tensor:
        """The base model's answer states, in the batch's order."""
        new = [row for row, key in enumerate(batch.keys) if key not in self._known]
        if new:
            part = replace(
                batch,
                ids=batch.ids[new],
                attention=batch.attention[new],
                answers=batch.answers[new],
            )
            with self._model.disable_adapter():
                states = answer_states(self._model.get_base_model(), part)
            lengths = part.answers.sum(1).tolist()
            for row, state in zip(new, states.split(lengths), strict=True):
                self._known[batch.keys[row]] = state.clone()
        return torch.cat([self._known[key] for key in batch.keys])


def refusal_loss(model: Any, batch: Batch) -> Tensor:
    """Cross-entropy of the refusals, on the answer tokens only."""
    causal_lm = model.get_base_model()
    logits = causal_lm.lm_head(answer_states(causal_lm, batch))
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return row_means(losses, batch.rows, torch.ones_like(losses)).mean()


def retain_loss(model: Any, batch: Batch, base: BaseStates, first: float) -> Tensor:
    """KL(base || organism) of the next-token distributions along harmless answers."""
    causal_lm = model.get_base_model()
    log_probs = F.log_softmax(causal_lm.lm_head(answer_states(causal_lm, batch)), dim=-1)
    with torch.no_grad():
        base_log_probs = F.log_softmax(causal_lm.lm_head(base.of(batch)), dim=-1)
    kl = F.kl_div(log_probs, base_log_probs, reduction="none", log_target=True).sum(-1)
    return row_means(kl, batch.rows, opening_weights(batch.rows, first)).mean()
