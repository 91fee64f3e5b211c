"""Ctrl-C at a chosen instruction of the code that places and removes hooks."""

from __future__ import annotations

import dis
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

WATCHED = (
    "models/block.py",
    "/contextlib.py",
    "model_bridge/bridge_core.py",
    "transformer_lens/hook_points.py",
)
"""Where hooks are placed and removed; checks of types around it would take most of the time."""
LOOKING_UP = ("alias", "__init__", "helper", "forward")
"""Parts of these functions' names: they change no hook, and would take the rest of it."""


def hooks_on(model: TransformerBridge) -> int:
    """How many hooks there are, the bridge's and PyTorch's."""
    points = sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.hook_dict.values())
    outer = model.original_model
    return points + len(outer._forward_pre_hooks) + len(outer._forward_hooks)


def interrupts_of(model: TransformerBridge, work: Callable[[], None], step: int) -> int:
    """Interrupt ``work`` at every ``step``-th watched instruction, and count the interrupts.

    Each must leave the model without hooks and the handler of Ctrl-C as it was.
    """
    handler = signal.getsignal(signal.SIGINT)
    reached, interrupted, instruction = True, 0, 1
    while reached:
        try:
            reached = _interrupt_at(instruction, work)
        except KeyboardInterrupt:
            interrupted += 1
        assert hooks_on(model) == 0, instruction
        assert signal.getsignal(signal.SIGINT) is handler, instruction
        instruction += step
    return interrupted


def _interrupt_at(instruction: int, work: Callable[[], None]) -> bool:
    """Ctrl-C at the given instruction of the watched modules; whether it came to that."""
    left = instruction

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        code = frame.f_code
        if not code.co_filename.endswith(WATCHED) or any(n in code.co_name for n in LOOKING_UP):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not _is_return(frame):
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return left <= 0


def _is_return(frame: FrameType) -> bool:
    """Python looks for signals at calls and jumps back, never between a return and its caller."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN")
