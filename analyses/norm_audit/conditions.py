"""The bases that the norm audit compares, by name."""

from __future__ import annotations

EXACT, ROUNDED, BENT = BASES = ("orthonormal", "rounded to bfloat16", "bent as published")
