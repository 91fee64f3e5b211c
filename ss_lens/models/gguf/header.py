"""The table of tensors at the head of a GGUF file, read without its vocabulary.

The reader of the ``gguf`` package builds an object for each of 300 000 tokens and merges, which
takes seconds; here they are passed over. This module needs no torch.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from ss_lens.core.errors import UserError

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_LONGEST = 1 << 31


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file.

    Attributes:
        name: in the words of GGUF, as ``blk.0.attn_q.weight``.
        shape: in the order of torch, the slowest dimension first.
        kind: the number of its format in ggml.
        start: its first byte in the file.
        n_bytes: how many it takes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself, its vocabulary left out."""

    path: Path
    architecture: str
    tensors: tuple[StoredTensor, ...]
    licence: str | None = None

    @property
    def n_parameters(self) -> int:
        """How many numbers it holds."""
        return sum(prod(tensor.shape) for tensor in self.tensors)


def read_header(path: Path) -> Header:
    """Read the table of tensors, and check that the file is long enough for all of them.

    Raises:
        UserError: it is no GGUF file of version 2 or 3, or is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _read(path, file, size)
        except (struct.error, UnicodeDecodeError, KeyError, OverflowError, EOFError) as error:
            raise _damaged(path, "its head cannot be read") from error


def _read(path: Path, file: BinaryIO, size: int) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    magic, version, n_tensors, n_values = _unpack(file, "<4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise _damaged(path, f"it begins with {magic!r} and version {version}, not b'GGUF' and 3")
    architecture, alignment, licence = "", 32, None
    for _ in range(n_values):
        key = _text(file)
        (kind,) = _unpack(file, "<I")
        if key == "general.architecture" and kind == _STRING:
            architecture = _text(file)
        elif key == "general.license" and kind == _STRING:
            licence = _text(file)
        elif key == "general.alignment" and kind == _UINT32:
            (alignment,) = _unpack(file, "<I")
        else:
            _skip(file, kind)
    table = []
    for _ in range(n_tensors):
        name = _text(file)
        (n_dimensions,) = _unpack(file, "<I")
        if n_dimensions > 8:
            raise _damaged(path, f"{name!r} has {n_dimensions} dimensions")
        shape = _unpack(file, f"<{n_dimensions}Q")[::-1]
        table.append((name, shape, *_unpack(file, "<IQ")))
    if not architecture or not alignment:
        raise _damaged(path, "it names no architecture")
    begin = -(-file.tell() // alignment) * alignment
    tensors = []
    for name, shape, kind, offset in table:
        if kind not in iter(GGMLQuantizationType):
            raise _damaged(path, f"{name!r} is in the unknown format {kind}")
        numbers, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or shape[-1] % numbers:
            raise _damaged(path, f"{name!r} of shape {shape} does not consist of whole blocks")
        tensor = StoredTensor(name, shape, kind, begin + offset, prod(shape) // numbers * width)
        if tensor.start + tensor.n_bytes > size:
            raise _damaged(
                path, f"{name!r} ends at byte {tensor.start + tensor.n_bytes} of {size}, it is cut"
            )
        tensors.append(tensor)
    return Header(path, architecture, tuple(tensors), licence)


def _unpack(file: BinaryIO, layout: str) -> tuple:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    data = file.read(min(length, _LONGEST))
    if len(data) != length:
        raise EOFError
    return data.decode("utf-8")


def _skip(file: BinaryIO, kind: int) -> None:
    """Pass over one value."""
    if kind == _STRING:
        _pass(file, _unpack(file, "<Q")[0])
    elif kind == _ARRAY:
        of, count = _unpack(file, "<IQ")
        if of in _WIDTHS:
            _pass(file, _WIDTHS[of] * count)
        else:
            for _ in range(count):
                _skip(file, of)
    else:
        _pass(file, _WIDTHS[kind])


def _pass(file: BinaryIO, n_bytes: int) -> None:
    file.seek(n_bytes, 1)


def _damaged(path: Path, how: str) -> UserError:
    return UserError(
        f"model '{path}' could not be loaded: {how}. Copy or fetch the GGUF file again."
    )
