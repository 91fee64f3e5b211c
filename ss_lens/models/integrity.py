"""What is refused of model files: damage, missing or foreign tensors, NaN and infinity."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ss_lens.core.errors import UserError, first_line
from ss_lens.models.gguf.header import Header

_DAMAGE = (
    OSError,  # also of the Hub client
    ValueError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    SafetensorError,
    StrictDataclassError,
    pickle.PickleError,
    struct.error,
)
"""What readers of weights, configurations and tokenizers raise over a file that is damaged."""


@contextmanager
def load_errors(name: str, place: str, fallback: str) -> Iterator[None]:
    """Turn whatever a reader raises over the files of a model into a :class:`UserError`.

    Args:
        name: the model as it was asked for.
        place: where its files are.
        fallback: a model that needs no Hub.
    """
    try:
        yield
    except UserError:  # says already what to do
        raise
    except Exception as error:
        if not isinstance(error, _DAMAGE) and type(error) is not Exception:  # tokenizers' own
            raise
        plain = isinstance(error, OSError | ValueError | SafetensorError)
        what = first_line(error) if plain else f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            remedy = "It does not fit into the memory: load it in bfloat16, or on another device."
        elif isinstance(error, ImportError):
            remedy = (
                "It needs a package that is not here, as quantised weights do: install it, or name "
                "a model in float32, bfloat16 or float16."
            )
        elif Path(place).is_dir():
            remedy = "Its files are damaged or incomplete: copy or fetch them again."
        else:
            remedy = (
                "Check the name or path; the first load from the Hub needs a network, and a gated "
                f"model needs its terms accepted and `hf auth login`. {fallback} comes from the "
                "package index instead."
            )
        raise UserError(f"model {name!r} could not be loaded: {what} {remedy}") from error


def check_gguf(path: Path) -> None:
    """Raise unless ``path`` is a file that begins as GGUF files do."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; check the path.")
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise UserError(
            f"model '{path}' could not be loaded: it begins with {start!r}, a GGUF file with "
            "b'GGUF'. Fetch it again, or name another file."
        )


def check_folder(path: Path) -> None:
    """Raise if ``path`` is a folder without a model's configuration."""
    if path.is_dir() and not (path / "config.json").exists():
        raise UserError(
            f"model '{path}' could not be loaded: the folder holds no config.json. Name a folder "
            "that `save_pretrained` wrote, or a .gguf file."
        )


def check_gguf_layers(header: Header, n_layers: int) -> None:
    """Raise where a GGUF file holds layers beyond ``n_layers``, which transformers passes over."""
    names = [tensor.name for tensor in header.tensors]
    held = {int(match[1]) for name in names if (match := re.match(r"blk\.(\d+)\.", name))}
    if held and max(held) >= n_layers:
        raise UserError(
            f"the weights of model '{header.path}' do not fit its configuration: it says "
            f"{n_layers} layers and holds tensors of layer {max(held)}. Copy or fetch it again."
        )


def stored_numbers(folder: Path) -> int | None:
    """How many numbers the safetensors files of a local folder hold, by their heads."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        return None
    total = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                total += prod(file.get_slice(key).get_shape())
    return total


def check_complete(name: str, found: Mapping[str, Any]) -> None:
    """Raise unless the files held exactly the tensors of the model.

    Args:
        name: the model as it was asked for.
        found: the loading information of transformers, which leaves out what a model ties to
            another tensor, computes itself, or is known to carry beside its weights.
    """
    mismatched = [key for key, *_ in found["mismatched_keys"]]
    for keys, what in (
        (found["missing_keys"], "lacks {}, which would be random"),
        (found["unexpected_keys"], "has {}, for which the model has no place"),
        (mismatched, "has {} in another shape"),
    ):
        if keys:
            first, *more = sorted(keys)
            which = repr(first) + (f" and {len(more)} more" if more else "")
            raise UserError(
                f"the weights of model {name!r} do not fit its configuration: the file "
                f"{what.format(which)}. Copy or fetch weights and config.json again, both of one "
                "version."
            )


def check_finite(name: str, model: nn.Module) -> None:
    """Raise where a parameter holds NaN or infinity.

    A sum is finite only where every term is, and takes one pass without a second tensor. It may
    overflow in half precision; only then are the terms looked at.
    """
    for key, weight in model.named_parameters():
        if not is_finite(weight):
            raise UserError(
                f"the weights of model {name!r} are damaged: {key!r} holds NaN or infinity in "
                f"{str(weight.dtype).removeprefix('torch.')}. Copy or fetch them again; weights "
                "that exceed the range of float16 load in bfloat16 or float32."
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite."""
    detached = tensor.detach()
    return bool(detached.sum().isfinite()) or bool(detached.isfinite().all())
