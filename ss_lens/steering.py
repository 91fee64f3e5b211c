"""Steering: a context manager that sets hooks at the selected sites and always removes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration import Calibration
from ss_lens.models import device_of
from ss_lens.operators import Operator
from ss_lens.sites import Site

Edit = Callable[[Tensor], Tensor]
Hook = tuple[str, Callable[..., Tensor | None]]


@contextmanager
def steer(
    model: TransformerBridge, calibration: Calibration, operator: Operator
) -> Iterator[TransformerBridge]:
    """Apply ``operator`` in the calibration's plane, at its selected sites, inside the block.

    Every token position is steered, in the prompt and in what is generated. An operator that is the
    identity (``RotateBy(0)``) sets no hook, so the model computes bit for bit what it would
    without. The hooks are gone after the block, also when it raises.

    Args:
        model: the model that the calibration was made on.
        calibration: plane and sites.
        operator: what to do; with one strength per row, the batch inside must have as many rows.

    Raises:
        UserError: the calibration is for another model, width or dtype.
    """
    calibration.check_fits(model)
    if operator.is_identity:
        yield model
        return
    plane = calibration.plane.to(device_of(model))
    fired: set[Site] = set()
    hooks: list[Hook] = []
    for site in calibration.selected_sites:

        def edit(h: Tensor, site: Site = site) -> Tensor:
            fired.add(site)
            return operator.apply(h, plane)

        hooks += _mid_hooks(site, edit) if site.stream == "resid_mid" else [_hook(site, edit)]
    with model.hooks(fwd_hooks=hooks):
        yield model
    silent = [str(site) for site in calibration.selected_sites if site not in fired]
    if fired and silent:
        warnings.warn(
            f"steering never reached {', '.join(silent)}: the forward pass stopped before them.",
            stacklevel=3,
        )


def _hook(site: Site, edit: Edit) -> Hook:
    return site.hook_name, lambda h, hook: edit(h)


def _mid_hooks(site: Site, edit: Edit) -> list[Hook]:
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
        return a + (edit(mid) - mid)

    return [
        (site.block_input_hook_name, remember),
        (site.attn_out_hook_name, replace),
    ]
