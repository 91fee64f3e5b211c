"""A block of hooks on a model: they are placed and removed as a whole, by one thread.

Python raises Ctrl-C between any two instructions, so also between placing a hook and noting it, or
before removal begins; here it waits until the hooks are all placed, or all gone. And a model is
shared by all threads, so that the hooks of one would act on another's passes; this is refused.
"""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import FrameType, TracebackType
from weakref import WeakKeyDictionary

from transformer_lens.model_bridge import TransformerBridge

from ss_lens.core.errors import UserError

_OPEN: WeakKeyDictionary[TransformerBridge, list[Block]] = WeakKeyDictionary()
_GUARD = threading.RLock()


@dataclass(frozen=True)
class Evenly:
    """Says of a block that its hooks treat a token alike in every row and every pass.

    Attributes:
        hooks: how many hooks the block placed.
        keep: at how many last tokens of a prompt they ask how far away its end is.
    """

    hooks: int
    keep: int


class Block(AbstractContextManager[TransformerBridge]):
    """Hooks on a model from entering the block to leaving it.

    Attributes:
        evenly: set by ``place`` where it is true of the hooks; ``None`` says nothing of them.

    Args:
        model: what is hooked.
        place: places the hooks on the stack, whose closing removes them; it is given this block.
        doing: what the hooks are for, as messages say it: "steering", followed by "this model".
        after: called with the model free of the hooks, where the block ended without an exception.
    """

    def __init__(
        self,
        model: TransformerBridge,
        place: Callable[[Block, ExitStack], None],
        doing: str,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._model = model
        self._place_hooks = place
        self._doing = doing
        self._after = after
        self._stack = ExitStack()
        self._thread: int | None = None
        self._interrupt = _DeferredInterrupt(self)
        self.evenly: Evenly | None = None

    def __enter__(self) -> TransformerBridge:
        if self._thread is not None:
            raise UserError(
                f"this block for {self._doing} the model was entered before, and a block is "
                "entered once; make another, for instance by calling steer(...) again."
            )
        try:
            self._interrupt.install()
            self._place()
            self._interrupt.raise_if_pending()
            return self._model
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._stack.close()
        finally:
            with _GUARD:
                if self in (opened := _OPEN.get(self._model, [])):
                    opened.remove(self)
            self._interrupt.uninstall()
        self._interrupt.raise_if_pending()
        if kind is None and self._after is not None:
            self._after()

    def _place(self) -> None:
        self._thread = threading.get_ident()
        with _GUARD:
            opened = _OPEN.setdefault(self._model, [])
            other = next((block for block in opened if block._thread != self._thread), None)
            if other is not None:
                raise UserError(
                    f"another thread is {other._doing} this model, and the hooks of both would act "
                    "on each other's passes; expected one thread at a time. Wait for its block to "
                    "end, share a lock, or load the model once per thread."
                )
            opened.append(self)
        self._place_hooks(self, self._stack)

    def check_thread(self) -> None:
        """Raise where a pass of the model runs in another thread than the block's."""
        if threading.get_ident() != self._thread:
            raise UserError(
                f"another thread is {self._doing} this model, and its hooks would act on this "
                "pass; expected passes of that thread alone. Wait for its block to end, share a "
                "lock, or load the model once per thread."
            )


def kept_apart(model: TransformerBridge) -> int | None:
    """How many last tokens of each prompt must run with the prompt, under the hooks in force.

    The tokens before them may run once for several prompts. ``None`` where a hook may depend on
    rows or passes: one that no open block answers for, such as a user's, or a block's own.
    """
    found = [block.evenly for block in _OPEN.get(model, [])]
    stated = [evenly for evenly in found if evenly is not None]
    if len(stated) < len(found) or hooks_on(model) != sum(evenly.hooks for evenly in stated):
        return None
    return max((evenly.keep for evenly in stated), default=1)


def hooks_on(model: TransformerBridge) -> int:
    """How many hooks act on the passes of the model, whoever placed them."""
    points = {id(point): point for point in model.hook_dict.values()}
    return sum(len(point.fwd_hooks) for point in points.values())


class _DeferredInterrupt:
    """Makes Ctrl-C wait while a block places or removes its hooks; else it does what it did before.

    Python tells only the main thread of Ctrl-C, and the handler sees where it was. That tells an
    interrupt at the first instruction of ``__exit__``, before any ``try`` of it, from one in the
    body of the block. A handler that is not a Python function (Ctrl-C is ignored, or ends the
    process) stays.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._before: Callable[[int, FrameType | None], object] | None = None
        self._pending: int | None = None

    def install(self) -> None:
        found = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(found):
            self._before = found
            signal.signal(signal.SIGINT, self._handle)

    def uninstall(self) -> None:
        # What the block's body installed meanwhile stays.
        if self._before is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._before)

    def raise_if_pending(self) -> None:
        """Do what a waiting Ctrl-C would have done."""
        number, self._pending = self._pending, None
        if number is not None and self._before is not None:
            self._before(number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        assert self._before is not None
        functions = (Block._place, Block.__exit__)
        critical = [inspect.unwrap(f).__code__ for f in functions]  # a type checker may wrap them
        at = frame
        while at is not None:
            if at.f_code in critical and at.f_locals.get("self") is self._block:
                self._pending = number
                return
            at = at.f_back
        self._before(number, frame)
