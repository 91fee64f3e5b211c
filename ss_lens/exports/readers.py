"""Who reads a norm's output: found by running the model, and proved by running it again.

A module is a reader where its input lies in the memory of the norm's output. The proof gives noise
to everyone else: each norm returns noise in the place of its output, each reader gets the true
output, and the logits must stay what they were. Whatever reads the output in another way (experts,
routers, mixers, the residual stream) makes them differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ss_lens.core.errors import UserError
from ss_lens.exports.plain import clean_name, logits_of
from ss_lens.models.sites import Site, Stream

STREAMS: tuple[Stream, ...] = ("ln1_out", "ln2_out")
_EQUAL = 1e-5
"""By how much logits may differ, as a share of the largest, where a device computes the same thing
in another order."""


def check_site(site: Site) -> None:
    """Raise for a site that is no output of a norm before attention or MLP."""
    if site.stream not in STREAMS:
        reason = (
            "what a norm after attention or MLP returns is added to the residual stream"
            if site.is_norm_output
            else "everything after it reads the residual stream"
        )
        raise UserError(
            f"{site} cannot be exported: {reason}, so no set of weights reads it alone; "
            f"expected sites of {' or '.join(STREAMS)}. Calibrate on these streams."
        )


def norm_names(model: TransformerBridge, sites: Sequence[Site]) -> dict[Site, str]:
    """The module of the Hugging Face model whose output each site is.

    Raises:
        UserError: a site that is no output of a norm before attention or MLP.
    """
    names = {id(module): clean_name(name) for name, module in model.original_model.named_modules()}
    found = {}
    for site in sites:
        check_site(site)
        norm = model.get_submodule(site.hook_name.removesuffix(".hook_out"))
        found[site] = names[id(getattr(norm, "original_component", norm))]
    return found


def find_readers(
    plain: PreTrainedModel, norms: Mapping[Site, str], ids: Int[Tensor, "token"]
) -> dict[Site, tuple[str, ...]]:
    """The linear modules that read each norm's output, proved to be all that do.

    Args:
        plain: as :func:`ss_lens.exports.plain.plain_copy` gives it.
        norms: the module of each site.
        ids: a short prompt.

    Raises:
        UserError: something else reads the output as well; a reader's weight is quantised, shared
            with another module, or used for something else too.
    """
    watched = _Watch(norms)
    with watched.on(plain):
        expected = logits_of(plain, ids)
    readers = {site: watched.readers(plain, site) for site in norms}
    for site in norms:
        for name in readers[site]:
            _check_reader(plain, site, name, watched.calls[name])
    if not _covers(plain, norms, readers, ids, expected):
        open_sites = [
            site
            for site in norms
            if not _covers(plain, {site: norms[site]}, readers, ids, expected)
        ]
        site = open_sites[0] if open_sites else next(iter(norms))
        more = f" and {len(open_sites) - 1} more sites" if len(open_sites) > 1 else ""
        others = watched.others(plain, site)
        raise UserError(
            f"{site}{more} cannot be exported: beside {_listed(readers[site]) or 'no module'}, "
            f"its output {norms[site]!r} is read by {_listed(others) or 'code of its own'}, "
            "expected linear modules alone, whose weights can hold the steering. Steer with hooks "
            "(ss_lens.steer), or calibrate on the other sites."
        )
    return readers


class _Watch:
    """What receives the output of each norm in one forward pass."""

    def __init__(self, norms: Mapping[Site, str]) -> None:
        self._norms = norms
        self._outputs: dict[int, tuple[Site, Tensor]] = {}  # kept, so that no memory is used again
        self._received: dict[Site, list[str]] = {site: [] for site in norms}
        self._whole: dict[Site, list[str]] = {site: [] for site in norms}
        self.calls: Counter[str] = Counter()

    @contextmanager
    def on(self, plain: PreTrainedModel) -> Iterator[None]:
        with ExitStack() as stack:
            for site, name in self._norms.items():
                hook = partial(self._keep, site)
                stack.callback(plain.get_submodule(name).register_forward_hook(hook).remove)
            for name, module in plain.named_modules():
                hook = partial(self._note, name)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _keep(self, site: Site, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._outputs[output.untyped_storage().data_ptr()] = site, output

    def _note(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.calls[name] += 1
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                site, output = self._outputs.get(value.untyped_storage().data_ptr(), (None, None))
                if site is not None and output is not None:
                    self._received[site].append(name)
                    if value.numel() == output.numel():
                        self._whole[site].append(name)

    def readers(self, plain: PreTrainedModel, site: Site) -> tuple[str, ...]:
        """The linear modules among the receivers."""
        modules = ((name, plain.get_submodule(name)) for name in dict.fromkeys(self._whole[site]))
        return tuple(name for name, module in modules if isinstance(module, nn.Linear | Conv1D))

    def others(self, plain: PreTrainedModel, site: Site) -> list[str]:
        """The innermost receivers that are no readers; where there are none, the outermost."""
        received, readers = dict.fromkeys(self._received[site]), self.readers(plain, site)
        rest = [name for name in received if name and name not in readers]
        inner = [n for n in rest if not any(m.startswith(f"{n}.") for m in received)]
        return inner or [n for n in rest if not any(n.startswith(f"{m}.") for m in rest)]


def _check_reader(plain: PreTrainedModel, site: Site, name: str, calls: int) -> None:
    weight = plain.get_submodule(name).weight
    uses = Counter(id(p) for _, p in plain.named_parameters(remove_duplicate=False))
    problem = None
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        kind = str(getattr(weight, "dtype", type(weight).__name__)).removeprefix("torch.")
        problem = f"has a quantised weight ({kind})"
    elif uses[id(weight)] > 1:
        problem = "shares its weight with another module"
    elif calls > 1:
        problem = f"is used {calls} times in a forward pass"
    if problem:
        raise UserError(
            f"{site} cannot be exported: {name!r}, which reads its output, {problem}, expected a "
            "weight of its own in floats that reads nothing else. Steer with hooks (ss_lens.steer)."
        )


def _covers(
    plain: PreTrainedModel,
    norms: Mapping[Site, str],
    readers: Mapping[Site, Sequence[str]],
    ids: Tensor,
    expected: Tensor,
) -> bool:
    """Whether the logits stay what they are when only the readers see the norms' output."""
    generator = torch.Generator().manual_seed(0)
    true: dict[Site, Tensor] = {}

    def hide(site: Site, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        true[site] = output
        noise = torch.randn(output.shape, generator=generator).to(output)
        return noise * output.float().square().mean().sqrt().to(output)

    def show(site: Site, module: nn.Module, args: tuple) -> tuple:
        return (true[site].reshape(args[0].shape), *args[1:])

    with ExitStack() as stack:
        for site, name in norms.items():
            norm = plain.get_submodule(name)
            stack.callback(norm.register_forward_hook(partial(hide, site)).remove)
            for reader in readers[site]:
                module = cast(nn.Module, plain.get_submodule(reader))
                stack.callback(module.register_forward_pre_hook(partial(show, site)).remove)
        got = logits_of(plain, ids)
    return bool((got - expected).abs().max() <= _EQUAL * expected.abs().max())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
