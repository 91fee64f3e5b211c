"""Which modules a LoRA configuration names: PEFT gives factors to these and to no other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LoraTargets:
    """The rule of a configuration, as PEFT reads it.

    Attributes:
        named: a regular expression for whole names, or what names end in; ``None`` leaves the
            choice to PEFT's table of architectures.
        excluded: as ``named``; what it names has no factors.
        layers: the only layers with factors; ``None`` is all.
        layer_names: what the list of layers is called; empty where any numbered list is meant.
    """

    named: str | tuple[str, ...] | None
    excluded: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layer_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LoraTargets | None:
        """The rule in ``adapter_config.json``; ``None`` where it is of another form."""
        named, excluded = config.get("target_modules"), config.get("exclude_modules") or ()
        layers, layer_names = config.get("layers_to_transform"), config.get("layers_pattern") or ()
        layers = [layers] if type(layers) is int else layers
        layer_names = [layer_names] if isinstance(layer_names, str) else layer_names
        made = cls(*map(_tuple, (named, excluded, layers, layer_names)))
        whole = layers is None or (
            isinstance(made.layers, tuple) and all(type(layer) is int for layer in made.layers)
        )
        texts = (made.named or (), made.excluded, made.layer_names)
        if not whole or not all(_is_text(part) for part in texts):
            return None
        try:
            for part in texts[:2]:
                re.compile(part if isinstance(part, str) else "")
        except re.error:
            return None
        return made

    @property
    def is_open(self) -> bool:
        """Whether PEFT itself chooses the modules, by the architecture."""
        return self.named is None or self.named == "all-linear"

    def name(self, module: str) -> bool:
        """Whether the rule gives factors to ``module``, if it is linear."""
        if _named(self.excluded, module):
            return False
        if self.is_open:
            return True
        assert self.named is not None
        if isinstance(self.named, str) or module in self.named or self.layers is None:
            return _named(self.named, module)
        return _named(self.named, module) and self._layer(module) in self.layers

    def _layer(self, module: str) -> int | None:
        for name in self.layer_names or (r"[^.]*",):
            if match := re.match(rf".*\.{name}\.(\d+)\.", module):
                return int(match[1])
        return None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (
        isinstance(part, Sequence) and all(isinstance(text, str) for text in part)
    )


def _named(rule: str | tuple[str, ...], module: str) -> bool:
    if isinstance(rule, str):
        return bool(rule) and re.fullmatch(rule, module) is not None
    return module in rule or module.endswith(tuple(f".{text}" for text in rule))
