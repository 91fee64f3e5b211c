"""A model belongs to one thread at a time while it is captured from."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import ContrastiveDataset, Store, UserError, capture, generate
from ss_lens.activations import capture as module
from ss_lens.models import forward


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, other: Callable[[], Any]
) -> list[UserError | str | None]:
    """Run ``other`` in a second thread inside the first hooked pass of a capture in this one."""
    ended: list[UserError | str | None] = []
    original, mine = forward.run_after, threading.get_ident()

    def tried() -> UserError | str | None:
        try:
            other()
        except UserError as error:
            return error
        except BaseException as error:
            return repr(error)
        return None

    def run_after(*arguments: Any) -> None:
        if threading.get_ident() == mine and not ended:
            with ThreadPoolExecutor(1) as pool:
                ended.append(pool.submit(tried).result())
        original(*arguments)

    monkeypatch.setattr(module.forward, "run_after", run_after)
    return ended


@pytest.mark.parametrize("what", ["captures", "generates"])
def test_another_thread_that_uses_the_model_meanwhile_is_refused_and_nothing_wrong_is_stored(
    what: str,
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    expected = capture(tiny_llama, tiny_data, store=Store(tmp_path / "alone"))
    others = ContrastiveDataset("others", tiny_data.negative, tiny_data.positive)

    def other() -> None:
        if what == "generates":
            generate(tiny_llama, list(others.positive), max_new_tokens=2)
        else:
            capture(tiny_llama, others, store=Store(tmp_path / "others"))

    ended = meanwhile(monkeypatch, other)
    got = capture(tiny_llama, tiny_data, store=store)
    assert torch.equal(got.positive, expected.positive)
    assert torch.equal(got.negative, expected.negative)
    assert len(ended) == 1
    assert isinstance(ended[0], UserError), ended
    assert "model carries hooks" in str(ended[0]) or "that thread alone" in str(ended[0])
    assert not any(point.fwd_hooks for point in tiny_llama.hook_dict.values())


def test_a_pass_of_another_thread_is_not_read(
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = meanwhile(monkeypatch, lambda: tiny_llama(torch.tensor([[1, 9, 11]])))
    capture(tiny_llama, tiny_data, store=store)
    assert len(ended) == 1
    assert "expected passes of that thread alone" in str(ended[0])


def test_two_threads_that_capture_at_once_store_nothing_wrong(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store, tmp_path: Path
) -> None:
    others = ContrastiveDataset("others", tiny_data.negative, tiny_data.positive)
    sets = (tiny_data, others)
    alone = {d.name: capture(tiny_llama, d, store=Store(tmp_path / "alone")) for d in sets}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def attempt(dataset: ContrastiveDataset, at: Store) -> bool | None:
        try:
            got = capture(tiny_llama, dataset, store=at, batch_size=1)
        except UserError:
            return None
        expected = alone[dataset.name]
        return torch.allclose(got.positive, expected.positive, atol=1e-4) and torch.allclose(
            got.negative, expected.negative, atol=1e-4
        )

    try:
        with ThreadPoolExecutor(2) as pool:
            for number in range(5):
                at = Store(tmp_path / str(number))
                ended = [*pool.map(attempt, sets, [at, at])]
                assert False not in ended
                assert True in ended
    finally:
        sys.setswitchinterval(interval)
