"""What the blocks below an edit compute, kept from one sweep to the next over the same prompts."""

from __future__ import annotations

from collections.abc import Hashable

from jaxtyping import Float
from torch import Tensor

ROOM = 2**28
"""So many bytes of streams are kept; what comes later is computed each time."""


class LowerBlocks:
    """Streams that enter the first steered block, for arms that differ from there on only.

    They hold as long as the weights do: keep one of these for each model, and not longer than it.

    Args:
        room: in bytes.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._streams: dict[Hashable, Float[Tensor, "distinct token d_model"]] = {}

    def at(self, key: Hashable) -> Stream:
        """The place of one batch; ``key`` says its tokens and how many blocks are below."""
        return Stream(self, key)

    def _keep(self, key: Hashable, stream: Float[Tensor, "distinct token d_model"]) -> None:
        size = stream.numel() * stream.element_size()
        if size <= self._room:
            self._room -= size
            # A copy: an operator of the user's may write to what it is given.
            self._streams[key] = stream.clone()


class Stream:
    """What enters the first steered block on the distinct rows of one batch, once it is known."""

    def __init__(self, home: LowerBlocks, key: Hashable) -> None:
        self._home, self._key = home, key
        self.known = home._streams.get(key)

    def taken_or(
        self, computed: Float[Tensor, "rows token d_model"]
    ) -> Float[Tensor, "distinct token d_model"]:
        """The stream that is known; else ``computed``, which is then kept."""
        if self.known is not None:
            return self.known
        self._home._keep(self._key, computed)
        return computed
