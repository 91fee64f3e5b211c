"""What a model computes as it runs, steered or not: chosen sites, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import Site
from ss_lens.models import forward
from ss_lens.models.block import Block
from ss_lens.models.chat import Tokens
from ss_lens.models.forward import Batch, Origin
from ss_lens.models.loading.devices import device_of


@torch.inference_mode()
def last_tokens(
    model: TransformerBridge,
    prompts: Sequence[Tokens],
    sites: Sequence[Site],
    batch_size: int,
    advance: Callable[[int], object],
) -> Float[Tensor, "prompt site d_model"]:
    """The activations at the last token of each prompt, in float32 on the CPU.

    Inside :func:`ss_lens.steer` they are those after the edit.

    Args:
        model: the model.
        prompts: token ids, template included.
        sites: which streams.
        batch_size: prompts per forward pass.
        advance: called with the number of prompts just done.
    """
    found = torch.empty(len(prompts), len(sites), model.cfg.d_model)
    for batch in forward.batches(
        prompts,
        forward.equal_groups(forward.order_by_length(prompts), batch_size),
        side="left",
        pad_id=forward.pad_id_of(model),
        device=device_of(model),
    ):
        found[list(batch.rows)] = _read(model, batch, batch.lengths, sites)[:, -1]
        advance(len(batch.rows))
    return found


@torch.inference_mode()
def all_tokens(
    model: TransformerBridge, ids: Tokens, n_prompt: int, sites: Sequence[Site]
) -> Float[Tensor, "token site d_model"]:
    """The activations at every token of a prompt and its answer, as :func:`last_tokens`.

    Args:
        model: the model.
        ids: the tokens of the prompt, then those of the answer.
        n_prompt: how many are the prompt's.
        sites: which streams.
    """
    row = torch.tensor([ids], device=device_of(model))
    batch = Batch((0,), row, torch.ones_like(row))
    return _read(model, batch, row.new_tensor([n_prompt]), sites)[0]


def _read(
    model: TransformerBridge, batch: Batch, prompt_lengths: Tensor, sites: Sequence[Site]
) -> Float[Tensor, "row token site d_model"]:
    seen: dict[Site, Tensor] = {}

    def place_hooks(block: Block, stack: ExitStack) -> None:
        def hook_at(site: Site) -> Callable[..., None]:
            def hook(h: Tensor, hook: object) -> None:
                block.check_thread()
                seen[site] = h.float().cpu()

            return hook

        # Hooks run in the order in which they were set, so these see what steering leaves.
        hooks = [(site.hook_name, hook_at(site)) for site in dict.fromkeys(sites)]
        stack.enter_context(model.hooks(fwd_hooks=hooks))

    with Block(model, place_hooks, "reading the streams of"):
        origin = Origin(batch.rows, prompt_lengths)
        forward.run_all(model, batch.ids, batch.mask, keep=1, origin=origin)
    return torch.stack([seen[site] for site in sites], dim=2)
