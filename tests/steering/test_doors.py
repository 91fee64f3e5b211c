"""The doors of steering: what is refused, whose thread a model is, what Ctrl-C leaves behind."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from ss_lens import (
    Calibration,
    ContrastiveDataset,
    PromptOnly,
    RotateBy,
    RotateTo,
    Store,
    Trace,
    UserError,
    steer,
    steer_all,
)
from tests.interrupts import hooks_on, interrupts_of


@pytest.fixture(scope="module")
def calibration(
    tiny_models: dict[str, TransformerBridge],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Calibration:
    store = Store(tmp_path_factory.mktemp("store"))
    acts = ss_lens.capture(tiny_models["llama"], tiny_data, store=store)
    return ss_lens.calibrate(acts, rule="uniform")


def logits(model: TransformerBridge) -> Tensor:
    return model(torch.arange(4, 12).unsqueeze(0), return_type="logits")


# --- wrong arguments are refused where they are given --------------------------------------------

REFUSED: dict[str, tuple[Callable[..., object], str]] = {
    "the operator's class": (
        lambda m, c: steer(m, c, RotateTo),  # type: ignore[arg-type]
        r"operator must be an operator such as .*; got the class RotateTo itself, which is no "
        r"value yet\. Write RotateTo\(angle_deg=\.\.\.\)",
    ),
    "an angle alone": (
        lambda m, c: steer(m, c, 90),  # type: ignore[arg-type]
        r"operator must be an operator such as ss_lens\.RotateBy\(angle_deg=90\); got 90",
    ),
    "swapped model and calibration": (
        lambda m, c: steer(c, m, RotateBy(90)),
        r"model must be a model from ss_lens\.load_model\(\.\.\.\); got a Calibration",
    ),
    "swapped calibration and operator": (
        lambda m, c: steer(m, RotateBy(90), c),  # type: ignore[arg-type]
        r"calibration must be a calibration from .*; got a RotateBy",
    ),
    "positions as text": (
        lambda m, c: steer(m, c, RotateBy(90), positions="all"),  # type: ignore[arg-type]
        r"positions must be AllPositions\(\), .*; got 'all'",
    ),
    "positions as a class": (
        lambda m, c: steer(m, c, RotateBy(90), positions=PromptOnly),  # type: ignore[arg-type]
        r"positions must be .*; got the class PromptOnly itself.* Write PromptOnly\(\)",
    ),
    "a trace that is none": (
        lambda m, c: steer(m, c, RotateBy(90), trace=True),  # type: ignore[arg-type]
        r"trace must be a ss_lens\.Trace\(\), or None; got True",
    ),
    "one pair instead of a list": (
        lambda m, c: steer_all(m, (c, RotateBy(90))),  # type: ignore[arg-type]
        r"edits\[0\] must be a pair \(calibration, operator\); got a Calibration",
    ),
    "no list": (
        lambda m, c: steer_all(m, c),
        r"edits must be a list of pairs \(calibration, operator\); got a Calibration",
    ),
    "a class within a pair": (
        lambda m, c: steer_all(m, [(c, RotateBy(90)), (c, RotateTo)]),  # type: ignore[list-item]
        r"edits\[1\]: operator must be .*; got the class RotateTo",
    ),
    "an overlap as text": (
        lambda m, c: steer_all(m, [(c, RotateBy(90))], max_overlap="1"),  # type: ignore[arg-type]
        r"max_overlap must be a cosine between 0 and 1, such as 0\.1; got '1'",
    ),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", REFUSED)
def test_an_argument_of_another_type_is_refused_before_the_block(
    tiny_llama: TransformerBridge, calibration: Calibration, case: str
) -> None:
    call, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        call(tiny_llama, calibration)


# --- a model belongs to one thread at a time -----------------------------------------------------


def in_another_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_second_thread_that_steers_the_same_model_is_refused(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    def steered() -> Tensor:
        with steer(tiny_llama, calibration, RotateBy(90)):
            return logits(tiny_llama)

    expected = steered()
    with steer(tiny_llama, calibration, RotateBy(180)):
        mine = logits(tiny_llama)
        with pytest.raises(UserError, match=r"another thread is steering this model.*one thread"):
            in_another_thread(steered)
        assert torch.equal(logits(tiny_llama), mine)
    assert torch.equal(in_another_thread(steered), expected)
    assert hooks_on(tiny_llama) == 0


def test_a_pass_of_another_thread_through_the_hooks_is_refused(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    with (
        steer(tiny_llama, calibration, RotateBy(90)),
        pytest.raises(
            UserError,
            match=r"another thread is steering this model, and its hooks .*share a lock, or load",
        ),
    ):
        in_another_thread(lambda: logits(tiny_llama))


def test_threads_that_take_turns_each_get_their_own_answers(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    lock = threading.Lock()

    def at(angle: float) -> Tensor:
        with lock, steer(tiny_llama, calibration, RotateBy(angle)):
            return logits(tiny_llama)

    angles = [30.0, 90.0, 150.0, 210.0]
    expected = [at(angle) for angle in angles]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(at, angles * 3), expected * 3, strict=True):
            assert torch.equal(got, wanted)


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.gettrace() is not None, reason="another tracer counts instructions")
@pytest.mark.parametrize("traced", [False, True], ids=["plain", "positions and trace"])
def test_ctrl_c_at_any_instruction_of_entering_and_leaving_leaves_no_hook(
    tiny_llama: TransformerBridge, calibration: Calibration, traced: bool
) -> None:
    options: dict[str, Any] = {"positions": PromptOnly(), "trace": Trace()} if traced else {}

    def work() -> None:
        with steer(tiny_llama, calibration, RotateBy(90), **options):
            pass

    assert interrupts_of(tiny_llama, work, step=11) > 20
    with steer(tiny_llama, calibration, RotateBy(90), **options):  # nothing counts as open
        logits(tiny_llama)


def test_ctrl_c_in_the_body_comes_at_once_and_in_nested_blocks_too(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    seen: list[str] = []

    def work() -> None:
        with steer(tiny_llama, calibration, RotateBy(90)):
            try:
                with steer(tiny_llama, calibration, RotateBy(45)):
                    signal.raise_signal(signal.SIGINT)
                    seen.append("inner")
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
                seen.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == []
    assert hooks_on(tiny_llama) == 0


def test_a_handler_that_the_body_installs_stays(
    tiny_llama: TransformerBridge, calibration: Calibration
) -> None:
    before = signal.getsignal(signal.SIGINT)
    mine: Callable[[int, FrameType | None], None] = lambda number, frame: None  # noqa: E731
    try:
        with steer(tiny_llama, calibration, RotateBy(90)):
            signal.signal(signal.SIGINT, mine)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_block_is_entered_once(tiny_llama: TransformerBridge, calibration: Calibration) -> None:
    block = steer(tiny_llama, calibration, RotateBy(90))
    with block:
        pass
    with pytest.raises(UserError, match="entered before, and a block is entered once"), block:
        pass
    assert hooks_on(tiny_llama) == 0
