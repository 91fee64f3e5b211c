"""What the tests of sweeps share: a small grid, and what a folder holds of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ss_lens.experiments.config import SweepConfig

Asked = dict[str, Any]


def with_grid(asked: Asked, **axes: Any) -> SweepConfig:
    return SweepConfig(**{**asked, "grid": {**asked["grid"], **axes}})


def batches(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file of finished cells."""
    paths = sorted((folder / "cells").glob("*/*.parquet"))
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in paths
    }
