"""Hooks at a site: names and closures that edit or read its stream."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ss_lens.models.block import Block
from ss_lens.models.sites import Site

Change = Callable[[Tensor], Tensor]
Hook = tuple[str, Callable[..., Tensor | None]]


def edit_hooks(site: Site, change: Change) -> list[Hook]:
    """Put what ``change`` makes of the stream at ``site`` in its place."""
    if site.stream != "resid_mid":
        return [_hook(site, change)]
    return _mid_hooks(site, change)


def reading_hooks(site: Site, look: Callable[[Tensor], None], block: Block) -> list[Hook]:
    """Show the stream at ``site``, before an edit there."""

    def read(h: Tensor) -> Tensor:
        block.check_thread()
        look(h)
        return h

    if site.stream != "resid_mid":
        return [_hook(site, read)]
    block_input: list[Tensor] = []

    def remember(x: Tensor, hook: object) -> None:
        block_input[:] = [x]

    def look_between(a: Tensor, hook: object) -> None:
        read(block_input.pop() + a)

    return [(site.block_input_hook_name, remember), (site.attn_out_hook_name, look_between)]


def _hook(site: Site, change: Change) -> Hook:
    return site.hook_name, lambda h, hook: change(h)


def _mid_hooks(site: Site, change: Change) -> list[Hook]:
    """Edit the stream between attention and MLP.

    TransformerLens' ``hook_resid_mid`` reaches the MLP's input alone. With the block's input x and
    what attention adds, a, returning a + f(x + a) − (x + a) from attention puts f(x + a) on the
    stream itself, for the MLP and for everything after it.
    """
    block_input: list[Tensor] = []

    def remember(x: Tensor, hook: object) -> None:
        block_input[:] = [x]

    def replace(a: Tensor, hook: object) -> Tensor:
        mid = block_input.pop() + a
        return a + (change(mid) - mid)

    return [
        (site.block_input_hook_name, remember),
        (site.attn_out_hook_name, replace),
    ]
