"""Files of ``torch.save`` from elsewhere: loaded without running code, and taken apart strictly."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.core.errors import UserError, first_line

# What zipfile and torch's restricted reader raise on bytes that nobody meant to write.
_MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def load_tensors(path: Path) -> Any:
    """The content of an existing file of ``torch.save``: a zip archive of a pickle and raw tensors.

    ``weights_only`` reads the pickle with a restricted machine that builds tensors, numbers, text
    and containers and refuses the rest. The archive's checksums, which torch does not look at, are
    compared first: otherwise a flipped bit in a tensor would be just another number.

    Raises:
        UserError: truncated, damaged, of another format, or holding code.
    """
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if flawed := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {flawed} differs")
            program = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if program:
            raise pickle.UnpicklingError("a TorchScript program")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds something other than tensors, numbers and text, such as code; nothing "
            "of it was executed. Do not open it in another way; get the file from its authors."
        ) from error
    except _MALFORMED as error:
        raise UserError(
            f"{path} is truncated, damaged or not a file of torch.save ({first_line(error)}); "
            "nothing of it was executed. Get it again."
        ) from error


@dataclass(frozen=True)
class Layout:
    """Takes values of the expected kind out of one file, or says what is there instead.

    Every method takes the keys that lead to the value and raises a :class:`UserError` that names
    the file, those keys, what is there, what was expected, and ``remedy``.
    """

    path: Path
    value: Any
    remedy: str

    def __post_init__(self) -> None:
        if not isinstance(self.value, dict):
            raise self.error("the whole", self.value, "a dictionary")

    def error(self, what: str, got: Any, expected: str) -> UserError:
        short = isinstance(got, str | float | int | None) and len(str(got)) < 80
        shown = str(got) if short else f"a {type(got).__name__}"
        return UserError(
            f"{self.path} is of another layout: {what} is {shown}; expected {expected}. "
            f"{self.remedy}"
        )

    def at(self, *keys: str | int) -> Any:
        found = self.value
        for key in keys:
            if isinstance(key, str):
                there = isinstance(found, dict) and key in found
            else:
                there = isinstance(found, tuple | list) and key < len(found)
            if not there:
                raise self.error(_dotted(keys), "missing", "it to be there")
            found = cast(Any, found)[key]
        return found

    def text(self, *keys: str | int) -> str:
        if not isinstance(found := self.at(*keys), str):
            raise self.error(_dotted(keys), found, "text")
        return found

    def whole(self, *keys: str | int, at_least: int = 0) -> int:
        found = self.at(*keys)
        if not isinstance(found, int) or isinstance(found, bool) or found < at_least:
            raise self.error(_dotted(keys), found, f"a whole number from {at_least} on")
        return found

    def number(self, *keys: str | int) -> float:
        found = self.at(*keys)
        try:
            value = float(found) if isinstance(found, float | int) else math.nan
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.error(_dotted(keys), found, "a finite number")
        return value

    def table(self, *keys: str | int, like: Iterable[str] | None = None) -> dict[str, Any]:
        """A dictionary by name, not empty; with ``like``, of exactly those names."""
        found = self.at(*keys)
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise self.error(_dotted(keys), found, "a dictionary by name")
        if not found:
            raise self.error(_dotted(keys), "empty", "something in it")
        if like is not None and (odd := sorted(found.keys() ^ {*like})):
            got = "there" if odd[0] in found else "missing"
            raise self.error(_dotted((*keys, odd[0])), got, "the same modules everywhere")
        return found

    def vector(self, width: int, *keys: str | int) -> Float[Tensor, "width"]:
        """A finite vector of ``width`` entries, in float64."""
        found = self.at(*keys)
        if not isinstance(found, Tensor) or found.layout != torch.strided or found.is_meta:
            raise self.error(_dotted(keys), found, "a tensor")
        if found.shape != (width,) or not found.is_floating_point():
            got = f"{found.dtype} of shape {tuple(found.shape)}"
            raise self.error(_dotted(keys), got, f"floating point of shape ({width},)")
        wide = found.detach().double()
        if not torch.isfinite(wide).all():
            raise self.error(_dotted(keys), "NaN or infinite", "finite numbers")
        return wide


def _dotted(keys: Iterable[str | int]) -> str:
    return ".".join(map(str, keys))
