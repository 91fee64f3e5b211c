"""Capability of steered models: items of the embedded benchmark, kept by content."""

from __future__ import annotations

import importlib.util
import logging
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from ss_lens.core.files import atomic_path, make_folder, sha256_of_json
from ss_lens.experiments.grid import Arm, CellGroup
from ss_lens.experiments.inputs import Workbench
from ss_lens.generation.angle_batch import at_angles
from ss_lens.scoring.capability import capability

logger = logging.getLogger(__name__)


def is_available() -> bool:
    """Whether lm-eval, which scores the items, is installed."""
    return importlib.util.find_spec("lm_eval") is not None


def items(bench: Workbench, arm: Arm, angle_deg: float | None, folder: Path) -> pd.DataFrame:
    """The rows of :func:`ss_lens.scoring.capability.capability`, from ``folder`` where they are.

    Args:
        bench: makes the arm's calibration.
        arm: what steers.
        angle_deg: of its operator; ``None`` is the unsteered model.
        folder: of one CSV file per model and arm.
    """
    setting = bench.setting(CellGroup(arm, "dev", "positive", (0.0,)))
    steering = None if angle_deg is None else [dict(setting.identity), angle_deg]
    of = {"unsteered": dict(setting.unsteered), "steering": steering}
    path = folder / f"{sha256_of_json({**of, 'lm_eval': version('lm_eval')})[:32]}.csv"
    if path.exists():
        return pd.read_csv(path)
    if (folder / f"{sha256_of_json(of)[:32]}.csv").exists():
        logger.info("capability of an earlier version, which named no lm-eval, is measured again")
    if angle_deg is None:
        found = capability(setting.model)
    else:
        operator = at_angles(setting.operator, angle_deg)
        found = capability(setting.model, calibration=setting.calibration, operator=operator)
    make_folder(folder)
    with atomic_path(path) as temporary:
        found.to_csv(temporary, index=False)
    return found
