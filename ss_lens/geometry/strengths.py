"""Strengths of operators: one number, or one per batch row, checked once and hashable."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ss_lens.core.checks import described
from ss_lens.core.errors import UserError
from ss_lens.geometry.blockwise import wide_dtype

Strengths = float | int | Sequence[float | int] | np.ndarray | Tensor
"""One number for all rows, or one per batch row; kept as a float or a tuple of floats."""


def validated(name: str, value: Strengths) -> float | tuple[float, ...]:
    """A float, or a tuple of floats.

    Raises:
        UserError: no number, a number that is not finite, or an array of more than one axis.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist()
    try:
        given = np.asarray(value)
        if given.dtype.kind in "bcSU":  # NumPy would take "90", True and 1j for numbers
            raise TypeError
        rows = given.astype(float)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{name} must be one number, or one per batch row; got {described(value)}. Write it "
            f"like {name}=90, or {name}=[0, 90] for two rows."
        ) from None
    if rows.ndim > 1 or rows.size == 0:
        raise UserError(f"{name} has shape {rows.shape}; give one number, or one per batch row.")
    if not np.isfinite(rows).all():
        raise UserError(f"{name} must be finite; got {described(value)}.")
    return float(rows) if rows.ndim == 0 else tuple(rows.tolist())


MOST_ANGLES = 3600
"""Of one sweep: a tenth of a degree apart; what exceeds it is a slip of the pen."""


def check_count(angles_deg: Sized) -> None:
    """Raise where more angles are asked for than anybody means."""
    if len(angles_deg) > MOST_ANGLES:
        raise UserError(
            f"{len(angles_deg):,} angles are given, expected at most {MOST_ANGLES:,}, a tenth of a "
            "degree apart; give fewer."
        )


def reduced(degrees: float | int | np.integer) -> float:
    """The same angle in [0, 360): 360 is 0 and −90 is 270.

    >>> reduced(-90), reduced(360), reduced(-1e-20)
    (270.0, 0.0, 0.0)
    """
    # An angle just below zero rounds to 360 at the first remainder.
    return float(degrees) % 360.0 % 360.0


def angles(name: str, value: Strengths) -> float | tuple[float, ...]:
    """As :func:`validated`, each angle in [0, 360) degrees."""
    degrees = validated(name, value)
    return tuple(map(reduced, degrees)) if isinstance(degrees, tuple) else reduced(degrees)


def strength(value: Strengths, h: Tensor) -> float | Tensor:
    """As the geometry takes it: a float, or a tensor with one entry per row of ``h``."""
    if isinstance(value, tuple):
        return _row_tensor(value, h.device, wide_dtype(h))
    return cast("float", value)


def radians(degrees: Strengths) -> Strengths:
    """The same strengths in radians."""
    if isinstance(degrees, tuple):
        return tuple(map(math.radians, degrees))
    return math.radians(cast("float", degrees))


def each(value: Strengths) -> tuple[float, ...]:
    """The strengths of all rows, or the one that holds for all."""
    return value if isinstance(value, tuple) else (cast("float", value),)


@lru_cache(maxsize=64)
def _row_tensor(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # Kept for later passes, which may want gradients where this one does not.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
