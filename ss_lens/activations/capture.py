"""Run prompts through a model once and keep what TransformerLens' hook points saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.activations import Activations
from ss_lens.activations.readers import Reader, last_token_reader, span_mean_reader, sum_reader
from ss_lens.activations.shards import ComputeShard
from ss_lens.activations.spec import CaptureSpec, Position, prompt_digest
from ss_lens.activations.store import Store
from ss_lens.core.checks import check_at_least, check_is, described
from ss_lens.core.errors import UserError
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.models import forward
from ss_lens.models.block import Block
from ss_lens.models.chat import (
    DEFAULT_FORMAT,
    ChatFormat,
    Tokens,
    check_context,
    prompt_spans,
    shared_prefix_length,
    tokenize,
    tokens_digest,
)
from ss_lens.models.forward import Batch
from ss_lens.models.loading.devices import device_of
from ss_lens.models.loading.fingerprint import identify
from ss_lens.models.sites import Site, Stream, sites_of

DEFAULT_STREAMS: tuple[Stream, ...] = ("ln1_out", "ln2_out", "resid_post")
SHARD_SIZE = 64
BATCH_SIZE = 32


def capture(
    model: TransformerBridge,
    dataset: ContrastiveDataset,
    *,
    streams: Sequence[Stream] = DEFAULT_STREAMS,
    layers: Iterable[int] | None = None,
    position: Position = -1,
    batch_size: int = BATCH_SIZE,
    store: Store | None = None,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> Activations:
    """Activations of every prompt at every site, from the store where it has them.

    Args:
        model: from :func:`ss_lens.load_model`.
        dataset: both classes go through the same chat template.
        streams: which streams to read, at every layer or at ``layers``.
        layers: layer indices from 0; ``None`` is all.
        position: a negative token index into the templated prompt (−1 is the last token, where
            arXiv 2601.19375 reads); ``"mean"`` over all its tokens, those of the template and the
            beginning-of-text token included; or ``"prompt_mean"`` over the tokens of the prompt's
            own text only.
        batch_size: prompts per forward pass; changes the speed, not the result.
        store: where activations are kept; ``None`` is the user's store.
        chat: system prompt, date and further arguments of the template.

    Returns:
        float32 activations on the CPU, ``[prompt, site, d_model]`` per class.

    The tokens that all prompts start with (template, system prompt) run once; the rest continues
    from their KV cache, padded on the right, without the unembedding.

    Raises:
        UserError: the model carries hooks (it is being steered); an unknown stream, layer or
            position; a prompt longer than the context or shorter than ``position``; activations
            that are not finite (it names the site and the prompt).
    """
    check_is("model", model, (TransformerBridge,), "a model from ss_lens.load_model(...)")
    made = "a dataset from ss_lens.load_dataset(...)"
    check_is("dataset", dataset, (ContrastiveDataset,), made)
    check_is("store", store, (Store, type(None)), "a ss_lens.Store(), or None")
    check_unhooked(model, "what is captured now would be stored as the model's own")
    sites = sites_of(model, streams, layers)
    check_at_least("batch_size", batch_size)
    prompts = (*dataset.positive, *dataset.negative)
    tokens = tokenize(model, prompts, chat)
    check_context(model, tokens, prompts)
    _check_position(position, tokens, prompts)
    spec = CaptureSpec(
        model=identify(model),
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        n_positive=len(dataset.positive),
        n_negative=len(dataset.negative),
        tokens_digest=tokens_digest(tokens),
        sites=sites,
        position=position,
        versions=tuple((name, version(name)) for name in _LIBRARIES),
        paired=dataset.paired,
        chat=chat,
        prompt_digests=tuple(map(prompt_digest, prompts)),
    )
    order = forward.order_by_length(tokens)
    plan = [order[start : start + SHARD_SIZE] for start in range(0, len(order), SHARD_SIZE)]
    spans = prompt_spans(model, prompts, chat) if position == "prompt_mean" else None
    compute = _shard_computer(model, spec, tokens, prompts, batch_size, spans)
    return (Store() if store is None else store).fetch(spec, plan, compute)


_LIBRARIES = ("torch", "transformer-lens", "transformers")


def check_unhooked(model: TransformerBridge, consequence: str) -> None:
    """Raise where the model carries hooks, as inside of ``steer(...)``; say what they would do."""
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    if hooked:
        raise UserError(
            f"the model carries hooks (at {hooked[0]}), so {consequence}. "
            "Do it outside of steer(...), or call model.reset_hooks() first."
        )


def _check_position(position: Position, tokens: Sequence[Tokens], prompts: Sequence[str]) -> None:
    if isinstance(position, str) and position in ("mean", "prompt_mean"):
        return
    if not isinstance(position, int) or isinstance(position, bool) or position >= 0:
        raise UserError(
            "position must be a negative token index, 'mean' or 'prompt_mean'; got "
            f"{described(position)}. Prompts differ in length, so tokens are counted from the end: "
            "−1 is the last."
        )
    shortest = min(range(len(tokens)), key=lambda i: len(tokens[i]))
    if len(tokens[shortest]) < -position:
        raise UserError(
            f"position {position} lies before the start of {prompts[shortest][:40]!r}, which has "
            f"{len(tokens[shortest])} tokens; valid: −{len(tokens[shortest])} to −1."
        )


def _shard_computer(
    model: TransformerBridge,
    spec: CaptureSpec,
    tokens: Sequence[Tokens],
    prompts: Sequence[str],
    batch_size: int,
    spans: Sequence[tuple[int, int]] | None,
) -> ComputeShard:
    """Prompt indices → activations; the shared prefix runs at the first call.

    ``spans`` are the tokens that ``"prompt_mean"`` averages; the prefix ends before the first.
    """
    keep = -spec.position if isinstance(spec.position, int) else 1
    shared = min([shared_prefix_length(tokens, keep), *(start for start, _ in spans or ())])
    if spans is not None:
        reader = span_mean_reader([(start - shared, stop - shared) for start, stop in spans])
    else:
        reader = sum_reader if spec.position == "mean" else last_token_reader(keep)
    rests = [ids[shared:] for ids in tokens]
    prefix: list[tuple[forward.Prefix | None, Tensor]] = []

    @torch.inference_mode()
    def compute(indices: Sequence[int]) -> Tensor:
        if not prefix:
            prefix.append(_prefix_of(model, spec, tokens[0][:shared]))
        computed_prefix, prefix_sum = prefix[0]
        values = torch.empty(len(indices), len(spec.sites), spec.model.d_model)
        done = 0
        for batch in forward.batches(
            rests,
            forward.thrifty_groups(rests, indices, batch_size),
            side="right",
            pad_id=forward.pad_id_of(model),
            device=device_of(model),
        ):
            got = _read(model, spec.sites, batch, reader, computed_prefix)
            if spec.position == "mean":
                totals = batch.lengths.cpu() + shared
                got = (got + prefix_sum) / totals.reshape(-1, 1, 1)
            _check_finite(got, batch, spec, prompts)
            values[done : done + len(batch.rows)] = got
            done += len(batch.rows)
        return values

    return compute


def _prefix_of(
    model: TransformerBridge, spec: CaptureSpec, ids: Tokens
) -> tuple[forward.Prefix | None, Float[Tensor, "site d_model"]]:
    """The shared prefix's KV cache, and its summed activations where a mean will need them."""
    nothing = torch.zeros(len(spec.sites), spec.model.d_model)
    if not ids:
        return None, nothing
    prefix = forward.compute_prefix(model, ids)
    if spec.position != "mean":
        return prefix, nothing
    row = torch.tensor([ids], device=device_of(model))
    whole = Batch((0,), row, torch.ones_like(row))
    return prefix, _read(model, spec.sites, whole, sum_reader, None)[0]


class _SeenEnough(Exception):
    """Ends a forward pass: nothing below the deepest site is wanted."""


def _read(
    model: TransformerBridge,
    sites: Sequence[Site],
    batch: Batch,
    reader: Reader,
    prefix: forward.Prefix | None,
) -> Float[Tensor, "row site d_model"]:
    seen: dict[Site, Tensor] = {}
    deepest = max(sites)

    def hook_at(site: Site, block: Block) -> Callable[..., None]:
        def hook(h: Tensor, hook: object) -> None:
            block.check_thread()
            seen[site] = reader(h, batch)
            if site == deepest:
                raise _SeenEnough

        return hook

    def place_hooks(block: Block, stack: ExitStack) -> None:
        hooks = [(site.hook_name, hook_at(site, block)) for site in sites]
        stack.enter_context(model.hooks(fwd_hooks=hooks))

    with Block(model, place_hooks, "capturing activations from"), suppress(_SeenEnough):
        forward.run_after(model, prefix, batch)
    silent = [str(site) for site in sites if site not in seen]
    assert not silent, f"hook points that never fired: {silent}"
    return torch.stack([seen[site] for site in sites], dim=1).cpu()


def _check_finite(
    values: Float[Tensor, "row site d_model"],
    batch: Batch,
    spec: CaptureSpec,
    prompts: Sequence[str],
) -> None:
    finite = values.isfinite().all(dim=-1)
    if not finite.all():
        line, column = (~finite).nonzero()[0].tolist()
        raise UserError(
            f"the activation at {spec.sites[column]} is not finite for the prompt "
            f"{prompts[batch.rows[line]][:60]!r}; load the model in float32 or bfloat16 "
            f"(it is in {spec.model.dtype}) and check its weights."
        )
