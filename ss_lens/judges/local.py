"""What local judges share: one stays loaded, so that a sweep does not load it for every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from safetensors import SafetensorError

from ss_lens.core.errors import UserError, first_line

Loaded = TypeVar("Loaded")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_resident: dict[tuple[Any, ...], Any] = {}


def resident(load: Callable[..., Loaded], *arguments: str | bool | None) -> Loaded:
    """``load(*arguments)``; what was loaded last is kept, what was there before is let go first."""
    key = (load, *arguments)
    if key not in _resident:
        unload()
        _resident[key] = load(*arguments)
    return _resident[key]


def unload() -> None:
    """Let go of the local judge that is loaded, for instance to steer a model in its memory."""
    _resident.clear()


def check_dtype(dtype: str) -> None:
    """Raise a :class:`UserError` for a number format that is not known."""
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; use {', '.join(DTYPES)}.")


def loaded_whole(kind: Any, name: str, **options: Any) -> Any:
    """``kind.from_pretrained(name, **options)``, with every tensor from its files and finite.

    Raises:
        UserError: a tensor is missing, has no place or another shape, or holds NaN or infinity.
    """
    from ss_lens.models.integrity import check_complete, check_finite

    model, found = cast(Any, kind.from_pretrained(name, output_loading_info=True, **options))
    check_complete(name, found)
    check_finite(name, model)
    return model


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Turn what transformers and the Hub client raise into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # a tokenizer's package
        raise UserError(
            f"the judge {name!r} could not be loaded: {first_line(error)} Check the name or path; "
            "the first load from the Hub needs a network, and a gated model needs its terms "
            "accepted and `hf auth login`."
        ) from error
