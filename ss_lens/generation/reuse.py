"""Work that the rows of a sweep share: the common prefix and the unsteered blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ss_lens.generation.lower_blocks import LowerBlocks, Stream
from ss_lens.models import forward
from ss_lens.models.chat import Tokens, shared_prefix_length
from ss_lens.models.forward import Batch, Origin
from ss_lens.models.loading.devices import device_of
from ss_lens.models.sites import Site
from ss_lens.steering.gates import Gate
from ss_lens.steering.positions import (
    AllPositions,
    GeneratedOnly,
    LastPrompt,
    Positions,
    PromptOnly,
)


@dataclass(frozen=True)
class Reach:
    """How far a sweep's edit reaches in each part of a generation, and so what its rows share.

    Attributes:
        shares: whether rows may be computed once for several, or leave the batch.
        splits: whether what all prompts start with may be run apart from the rest of them.
        prefix, prompt: over these tokens so many blocks, from below, compute the same at every
            strength; all blocks, where the edit leaves these tokens alone.
        answer: whether the edit reaches the tokens of the answer.
        keep: how many last tokens of a prompt do not count as its prefix.
        blocks: how many the model has.
    """

    shares: bool
    splits: bool
    prefix: int
    prompt: int
    answer: bool
    keep: int
    blocks: int

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        sites: Sequence[Site],
        positions: Positions,
        when: Gate | None = None,
    ) -> Reach:
        """Build before the edit is in force: hooks that exist by then are not its own.

        A gate must see each row at its site, and the end of a prompt before its beginning is
        steered.
        """
        blocks = model.cfg.n_layers
        first = min((site.layer for site in sites), default=blocks)
        from_start = isinstance(positions, AllPositions | PromptOnly)
        prompt = blocks if isinstance(positions, GeneratedOnly) else first
        return cls(
            shares=keeps_every_key(model) and not is_hooked(model),
            splits=when is None or not from_start,
            prefix=first if from_start else blocks,
            prompt=prompt if when is None else min(prompt, when.site.layer),
            answer=isinstance(positions, AllPositions | GeneratedOnly),
            keep=positions.k if isinstance(positions, LastPrompt) else 1,
            blocks=blocks,
        )

    def prefix_of(self, tokens: Sequence[Tokens]) -> Tokens:
        """What all prompts start with and may be run apart from the rest of them."""
        if not (self.shares and self.splits and tokens):
            return ()
        return tokens[0][: shared_prefix_length(tokens, self.keep)]


def keeps_every_key(model: TransformerBridge) -> bool:
    """Return whether each layer caches the keys of its own tokens.

    Recurrent layers keep a state in place of keys; in some models a layer uses another's keys.
    """
    layers = DynamicCache(config=_config(model)).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and len(layers) == model.cfg.n_layers


def is_hooked(model: TransformerBridge) -> bool:
    """Return whether an outer ``steer(...)``, a trace or a user's hook acts on the model.

    Such a hook may depend on which rows and passes it sees.
    """
    return any(point.fwd_hooks for point in model.hook_dict.values())


@dataclass(frozen=True, eq=False)
class Repeats:
    """Which batch rows are alike: row ``i`` is like row ``first[like[i]]``."""

    first: Int[Tensor, "distinct"]
    like: Int[Tensor, "row"]

    @classmethod
    def of(cls, rows: Sequence[Hashable], device: torch.device) -> Repeats:
        """Rows are alike where they are equal."""
        first: dict[Hashable, int] = {}
        for place, row in enumerate(rows):
            first.setdefault(row, place)
        order = {row: place for place, row in enumerate(first)}
        return cls(
            torch.tensor(list(first.values()), device=device),
            torch.tensor([order[row] for row in rows], device=device),
        )

    @property
    def any(self) -> bool:
        return len(self.first) < len(self.like)


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """Keys and values of the tokens that all prompts start with, layer by layer.

    A layer has them once, or once for each strength where the edit reaches it. All tokens are kept,
    also where a layer looks back over a sliding window: each row cuts off other tokens.
    """

    length: int
    layers: tuple[tuple[Float[Tensor, "_ _ token _"], Float[Tensor, "_ _ token _"]], ...]

    def cache(
        self,
        model: TransformerBridge,
        padding: Int[Tensor, "row"],
        strengths: Int[Tensor, "row"],
        below: Int[Tensor, "distinct"],
        depth: int,
    ) -> DynamicCache:
        """The KV cache that the first ``length`` columns of a left-padded batch leave behind.

        These hold each row's padding and then as much of the prefix as fits; the rest of it is run
        again, in columns that would hold padding without the sharing. So no padding comes between a
        row's tokens, where a sliding window, which is counted in columns, would reach less far.
        ``strengths`` says which of the prefix's strengths each row has; layers below ``depth`` get
        the rows ``below`` alone.
        """
        columns = torch.arange(self.length, device=padding.device) - padding.unsqueeze(1)
        # Padding gets the keys of some token, which the mask hides.
        columns = columns.clamp(min=0)
        every = torch.arange(len(padding), device=padding.device)
        cache = DynamicCache(config=_config(model))
        for layer, kept in enumerate(self.layers):
            rows = below if layer < depth else every
            which = strengths[rows] if len(kept[0]) > 1 else torch.zeros_like(rows)
            # Indexed around a slice: [row, token, head, key].
            keys, values = (
                part[which.unsqueeze(1), :, columns[rows]].transpose(1, 2) for part in kept
            )
            cache.update(keys, values, layer)
        return cache


def run_prefix(
    model: TransformerBridge, ids: Tokens, strengths: int, reach: Reach
) -> SharedPrefix | None:
    """Run the shared tokens; ``None`` where there are none.

    Where the edit reaches them it must be in force, with ``strengths`` rows.
    """
    if not ids:
        return None
    rows = strengths if reach.prefix < reach.blocks else 1
    device = device_of(model)
    batch = torch.tensor([ids], device=device).repeat(rows, 1)
    # Without a configuration the cache forgets nothing, whatever the windows are.
    cache = DynamicCache()
    # Each prompt continues from here to an end of its own, which is out of reach.
    origin = Origin(tuple(range(rows)), batch.new_full((rows,), 2**31))
    with _once_below(model, reach.prefix, Repeats.of([0] * rows, device), None):
        forward.run(model, batch, torch.ones_like(batch), cache, origin=origin)
    layers = cast(Any, cache).layers
    return SharedPrefix(len(ids), tuple((layer.keys, layer.values) for layer in layers))


def run_prompts(
    model: TransformerBridge,
    batch: Batch,
    prefix: SharedPrefix | None,
    strengths: Int[Tensor, "row"],
    reach: Reach,
    lower: LowerBlocks | None = None,
) -> tuple[Float[Tensor, "row vocab"], Any]:
    """Logits after each prompt, and the KV cache, as :func:`forward.run` returns them.

    ``batch`` is left-padded and holds whole prompts; rows with equal tokens are computed once as
    far as the edit allows, and not at all where ``lower`` has what those blocks gave. Then there is
    no cache to go on from. Where the edit reaches the prompts it must be in force.
    """
    ids, cache = batch.ids, None
    alike = zip(ids.tolist(), batch.lengths.tolist(), strict=True)
    rows = [(*row, n) for row, n in alike] if reach.shares else range(len(batch.rows))
    repeats = Repeats.of(rows, ids.device)
    done = 0 if prefix is None else prefix.length
    kept = None
    if lower is not None and reach.shares and 0 < reach.prompt < reach.blocks:
        kept = lower.at((reach.prompt, done, tuple(dict.fromkeys(rows))))
    if prefix is not None:
        padding, below = ids.shape[1] - batch.lengths, _run_below(repeats, kept)
        cache = prefix.cache(model, padding, strengths, below, reach.prompt)
    origin = Origin(batch.rows, batch.lengths)
    if reach.prompt == reach.blocks:
        first = repeats.first
        origin = Origin(tuple(batch.rows[i] for i in first.tolist()), batch.lengths[first])
        mask = batch.mask[first]
        logits, cache = forward.run(model, ids[first, done:], mask, cache, True, origin)
        logits = logits[repeats.like]
    else:
        with _once_below(model, reach.prompt, repeats, kept):
            keep = kept is None
            logits, cache = forward.run(model, ids[:, done:], batch.mask, cache, keep, origin)
    if kept is not None:
        return logits, None
    if repeats.any:
        for layer in cache.layers[: reach.prompt]:
            layer.reorder_cache(repeats.like)
    return logits, cache


def _run_below(repeats: Repeats, kept: Stream | None) -> Int[Tensor, "distinct"]:
    """The rows that the blocks below the edit run on; one, where what they give is known."""
    return repeats.first if kept is None or kept.known is None else repeats.first[:1]


@contextmanager
def _once_below(
    model: TransformerBridge, depth: int, repeats: Repeats, kept: Stream | None
) -> Iterator[None]:
    """Inside, the blocks below ``depth`` run on the distinct rows of each batch alone.

    The model itself is given all rows, and so are the blocks from ``depth`` on and whoever watches
    them. The caches of the lower blocks hold the distinct rows. What these give is taken from
    ``kept``, or put there.
    """
    rows, below = len(repeats.like), _run_below(repeats, kept)

    def narrow(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        given = {name: _picked(value, rows, below) for name, value in kwargs.items()}
        return _picked(args, rows, below), given

    def widen(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        # All else comes from outside of the blocks, where every row is.
        stream = args[0] if kept is None else kept.taken_or(args[0])
        return (stream[repeats.like], *args[1:]), kwargs

    handles = []
    if depth > 0 and (repeats.any or kept is not None):
        blocks = model.blocks
        handles = [b.register_forward_pre_hook(narrow, with_kwargs=True) for b in blocks[:depth]]
        if depth < len(blocks):
            handles.append(blocks[depth].register_forward_pre_hook(widen, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _picked(value: Any, rows: int, which: Tensor) -> Any:
    """``value`` with each tensor that has ``rows`` rows cut down to ``which`` of them."""
    if isinstance(value, tuple):
        return tuple(_picked(part, rows, which) for part in value)
    per_row = isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows
    return value[which] if per_row else value


def _config(model: TransformerBridge) -> Any:
    return cast(Any, model.original_model).config
