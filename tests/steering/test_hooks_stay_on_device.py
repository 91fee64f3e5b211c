"""A hook of ``steer`` neither waits for the device nor copies from or to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.operators import OPERATORS
from ss_lens import Calibration, ContrastiveDataset, Store, steer
from ss_lens.models import forward
from ss_lens.steering.positions import AllPositions, LastPrompt, Positions, PromptOnly
from tests.fitting import fitted_on

# A number read on the host, a shape that depends on values, a constant made on the host.
WAITING = {
    *("item", "_local_scalar_dense", "is_nonzero", "equal", "allclose"),
    *("nonzero", "masked_select", "unique", "repeat_interleave", "lift_fresh"),
}


class Operations(TorchDispatchMode):
    """Names the operations that run inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def operations_of_hooks(
    model: TransformerBridge,
    names: list[str],
    edit: Callable[[], AbstractContextManager[object]],
) -> Iterator[Operations]:
    """What runs between a hook placed before those of ``edit`` and one placed after them."""
    seen = Operations()

    def begin(h: Tensor, hook: object) -> None:
        seen.__enter__()

    def end(h: Tensor, hook: object) -> None:
        seen.__exit__(None, None, None)

    with (
        model.hooks(fwd_hooks=[(name, begin) for name in names]),
        edit(),
        model.hooks(fwd_hooks=[(name, end) for name in names]),
    ):
        yield seen


@pytest.fixture
def calibration(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> Calibration:
    return fitted_on(tiny_llama, tiny_data, store)


@pytest.mark.parametrize("positions", [AllPositions(), PromptOnly(), LastPrompt(2)], ids=repr)
@pytest.mark.parametrize("name", OPERATORS)
def test_hooks_run_nothing_that_waits_for_the_device(
    name: str, positions: Positions, tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    names = [site.hook_name for site in calibration.selected_sites]
    ids = torch.arange(8, 48).reshape(8, 5)

    def edit() -> AbstractContextManager[object]:
        return steer(tiny_llama, calibration, OPERATORS[name], positions=positions)

    with torch.inference_mode():
        with edit():
            forward.run(tiny_llama, ids, torch.ones_like(ids))  # strengths of rows, kept from here
        with operations_of_hooks(tiny_llama, names, edit) as seen:
            forward.run(tiny_llama, ids, torch.ones_like(ids))
    assert len(seen.names) >= len(names)
    assert not set(seen.names) & WAITING


def test_a_hook_that_reads_a_number_is_noticed(tiny_llama: TransformerBridge) -> None:
    """Or the test above would prove nothing."""

    def waits(h: Tensor, hook: object) -> None:
        float(h.sum())

    place = ["blocks.1.ln1.hook_out"]
    ids = torch.arange(8, 13).unsqueeze(0)
    with (
        torch.inference_mode(),
        operations_of_hooks(
            tiny_llama, place, lambda: tiny_llama.hooks(fwd_hooks=[(place[0], waits)])
        ) as seen,
    ):
        forward.run(tiny_llama, ids, torch.ones_like(ids))
    assert set(seen.names) & WAITING
