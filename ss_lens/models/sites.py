"""Sites: the places in a transformer where activations are read and steered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import total_ordering
from numbers import Integral
from typing import Literal, Protocol, cast, get_args, runtime_checkable

from ss_lens.core.checks import described
from ss_lens.core.errors import UserError

Stream = Literal[
    "resid_pre",
    "ln1_out",
    "ln1_post_out",
    "resid_mid",
    "ln2_out",
    "ln2_post_out",
    "resid_post",
]
"""Streams of a block in the order in which a token meets them."""

STREAMS: tuple[Stream, ...] = get_args(Stream)
NORM_STREAMS: tuple[Stream, ...] = ("ln1_out", "ln1_post_out", "ln2_out", "ln2_post_out")

_HOOKS: dict[Stream, str] = {
    "resid_pre": "hook_resid_pre",
    "ln1_out": "ln1.hook_out",
    "ln1_post_out": "ln1_post.hook_out",
    "resid_mid": "hook_resid_mid",
    "ln2_out": "ln2.hook_out",
    "ln2_post_out": "ln2_post.hook_out",
    "resid_post": "hook_resid_post",
}


@runtime_checkable
class HookedModel(Protocol):
    """What this module needs of a model: its hook points by name."""

    @property
    def hook_dict(self) -> dict: ...


@total_ordering
@dataclass(frozen=True)
class Site:
    """One stream of one layer; prints as ``L12.ln1_out`` and sorts by depth."""

    layer: int
    stream: Stream

    def __post_init__(self) -> None:
        _check_stream(self.stream)
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 0:
            raise UserError(
                f"a layer is a whole number, counted from 0; got {described(self.layer)}."
            )

    def __str__(self) -> str:
        return f"L{self.layer}.{self.stream}"

    def __lt__(self, other: Site) -> bool:
        return self._depth < other._depth

    @property
    def _depth(self) -> tuple[int, int]:
        return self.layer, STREAMS.index(self.stream)

    @property
    def hook_name(self) -> str:
        """The TransformerLens hook point that carries this stream."""
        return f"blocks.{self.layer}.{_HOOKS[self.stream]}"

    @property
    def block_input_hook_name(self) -> str:
        """Where the stream enters this layer's attention, after every edit of ``resid_pre``."""
        return f"blocks.{self.layer}.ln1.hook_in"

    @property
    def attn_out_hook_name(self) -> str:
        """What attention adds to the stream in this layer (needed to edit ``resid_mid``)."""
        return f"blocks.{self.layer}.hook_attn_out"

    @property
    def is_norm_output(self) -> bool:
        return self.stream in NORM_STREAMS

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that prints as ``text``.

        >>> Site.parse("L12.ln1_out")
        Site(layer=12, stream='ln1_out')
        """
        match = re.fullmatch(r"L(\d+)\.(\w+)", text)
        if match is None:
            raise UserError(f"{text!r} is not a site; sites are written like L12.ln1_out.")
        _check_stream(match[2])
        return cls(int(match[1]), cast(Stream, match[2]))


def _check_stream(name: object) -> None:
    if not isinstance(name, str) or name not in STREAMS:
        raise UserError(f"unknown stream {described(name)}; streams are {', '.join(STREAMS)}.")


def n_layers_of(model: HookedModel) -> int:
    """How many blocks the model has, counted from its hook points."""
    return 1 + max(
        int(match[1]) for name in model.hook_dict if (match := re.match(r"blocks\.(\d+)\.", name))
    )


def available_streams(model: HookedModel) -> tuple[Stream, ...]:
    """The streams that this architecture has (the two ``*_post_out`` exist on Gemma only)."""
    hooks = model.hook_dict
    return tuple(stream for stream in STREAMS if Site(0, stream).hook_name in hooks)


def _whole_layers(layers: object) -> list[int]:
    """Layer indices, NumPy's included, in their order and once each."""
    chosen = [*layers] if isinstance(layers, Iterable) and not isinstance(layers, str) else None
    if chosen is None or not all(
        isinstance(layer, Integral) and not isinstance(layer, bool) for layer in chosen
    ):
        raise UserError(
            f"layers must be a list of layer indices such as [0, 1], or None for all; got "
            f"{described(layers)}."
        )
    return sorted({*map(int, chosen)})


def sites_of(
    model: HookedModel, streams: Sequence[Stream], layers: Iterable[int] | None = None
) -> tuple[Site, ...]:
    """All sites of the given streams and layers (default: every layer), ordered by depth.

    Raises:
        UserError: a stream that this architecture lacks, or a layer out of range.
    """
    present = available_streams(model)
    if isinstance(streams, str) or not isinstance(streams, Sequence):
        raise UserError(
            f"streams must be a list of streams such as ['ln1_out', 'ln2_out']; got "
            f"{described(streams)}."
        )
    if not streams:
        raise UserError(f"no stream was asked for; this model has {', '.join(present)}.")
    for stream in streams:
        if stream not in present:
            raise UserError(
                f"stream {described(stream)} does not exist on this architecture; "
                f"it has {', '.join(present)}."
            )
    n_layers = n_layers_of(model)
    chosen = range(n_layers) if layers is None else _whole_layers(layers)
    if not chosen:
        raise UserError(f"no layer was asked for; valid: 0–{n_layers - 1}.")
    for layer in chosen:
        if not 0 <= layer < n_layers:
            raise UserError(
                f"layer {layer} is out of range for the {n_layers}-layer model; "
                f"valid: 0–{n_layers - 1}."
            )
    return tuple(sorted(Site(layer, stream) for layer in chosen for stream in set(streams)))
