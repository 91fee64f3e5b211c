"""Captures are alone on their model: what Ctrl-C leaves behind, and other threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import ContrastiveDataset, Store, UserError
from ss_lens.activations.activations import Activations, stacked
from ss_lens.activations.shards import ComputeShard
from ss_lens.activations.spec import CaptureSpec
from ss_lens.models import forward
from tests.interrupts import hooks_on, interrupts_of


class NoStore(Store):
    """Computes everything anew; the disk has interrupts of its own."""

    def fetch(
        self, spec: CaptureSpec, plan: Sequence[Sequence[int]], compute: ComputeShard
    ) -> Activations:
        return stacked(torch.cat([compute(indices) for indices in plan]), spec)


@pytest.mark.skipif(sys.gettrace() is not None, reason="another tracer counts instructions")
def test_ctrl_c_at_any_instruction_of_a_capture_leaves_no_hook(
    tiny_llama: TransformerBridge,
) -> None:
    data = ContrastiveDataset("two", ("w8 w9",), ("w10",))

    def work() -> None:
        ss_lens.capture(tiny_llama, data, streams=("ln1_out",), store=NoStore())

    assert interrupts_of(tiny_llama, work, step=19) > 20
    work()  # nothing counts as open


def test_a_pass_of_another_thread_during_a_capture_is_refused(
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its activations would be kept as those of the prompts."""
    run_after = forward.run_after
    refused: list[str] = []

    def meanwhile(model: TransformerBridge, *given: object) -> None:
        def other() -> None:
            with pytest.raises(UserError) as error:
                model(torch.arange(4, 12).unsqueeze(0))
            refused.append(str(error.value))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        run_after(model, *given)  # type: ignore[arg-type]

    expected = ss_lens.capture(tiny_llama, tiny_data, store=Store(store.root / "other"))
    monkeypatch.setattr(forward, "run_after", meanwhile)
    found = ss_lens.capture(tiny_llama, tiny_data, store=store)
    assert torch.equal(found.positive, expected.positive)
    assert refused
    assert "another thread is capturing activations from this model" in refused[0]


def test_captures_of_two_threads_at_once_are_right_or_refused(
    tiny_llama: TransformerBridge, tmp_path: Path
) -> None:
    sets = [
        ContrastiveDataset(str(i), tuple(f"w{i} w{j}" for j in range(20, 60)), ("w8",))
        for i in range(9, 13)
    ]

    def captured(data: ContrastiveDataset, place: str) -> torch.Tensor:
        store = Store(tmp_path / place / data.name)
        return ss_lens.capture(tiny_llama, data, store=store, batch_size=2).positive

    expected = [captured(data, "alone") for data in sets]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(captured, data, "together") for data in sets]
    for future, wanted in zip(futures, expected, strict=True):
        error = future.exception()
        if error is None:
            assert torch.equal(future.result(), wanted)
        else:
            assert isinstance(error, UserError)
    assert hooks_on(tiny_llama) == 0
