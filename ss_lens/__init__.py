"""Selective Steering (arXiv 2601.19375) on TransformerLens.

Names are loaded on first use, so that ``import ss_lens`` needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ss_lens.ablations import AblationConfig, AblationResult, load_ablations, run_ablations
    from ss_lens.activations import Activations, CaptureSpec, Evidence
    from ss_lens.angle_choice import AngleChoice, AngleCriterion, choose_angle
    from ss_lens.angle_sweeps import sweep_angles
    from ss_lens.calibration import Calibration, Recipe, calibrate
    from ss_lens.capture import capture
    from ss_lens.datasets import ContrastiveDataset, load_dataset
    from ss_lens.dictionary import Dictionary
    from ss_lens.directions import CentredPCA, DifferenceOfMeans, Fisher, Logistic, PairedPCA
    from ss_lens.errors import UserError
    from ss_lens.experiment import Run, RunConfig, load_run, run_main_job
    from ss_lens.generation import generate
    from ss_lens.geometry import Plane
    from ss_lens.global_direction import AtSite, BestSeparation, Consensus, MaxMeanCosine
    from ss_lens.models import load_model
    from ss_lens.operators import (
        Ablate,
        ActAdd,
        Add,
        Reflect,
        RotateBy,
        RotateScale,
        RotateTo,
        RotateToIfAligned,
        RotateToward,
        SetAngle,
    )
    from ss_lens.planes import PC1, ClassMeans, Grassmann, NextBest, RandomPlane, RandomSecond
    from ss_lens.positions import AllPositions, GeneratedOnly, LastPrompt, PromptOnly
    from ss_lens.selection import (
        Discriminative,
        EveryKth,
        Explicit,
        Half,
        RandomSites,
        TopK,
        Uniform,
    )
    from ss_lens.sites import Site
    from ss_lens.steering import steer, steer_all
    from ss_lens.store import Store
    from ss_lens.sweep_config import SweepConfig, load_sweep_config
    from ss_lens.sweeps import SweepResult, load_sweep, run_sweep
    from ss_lens.trace import Trace

_HOMES = {
    "ablations": ("AblationConfig", "AblationResult", "load_ablations", "run_ablations"),
    "activations": ("Activations", "CaptureSpec", "Evidence"),
    "angle_choice": ("AngleChoice", "AngleCriterion", "choose_angle"),
    "angle_sweeps": ("sweep_angles",),
    "calibration": ("Calibration", "Recipe", "calibrate"),
    "capture": ("capture",),
    "datasets": ("ContrastiveDataset", "load_dataset"),
    "dictionary": ("Dictionary",),
    "directions": ("CentredPCA", "DifferenceOfMeans", "Fisher", "Logistic", "PairedPCA"),
    "errors": ("UserError",),
    "experiment": ("Run", "RunConfig", "load_run", "run_main_job"),
    "generation": ("generate",),
    "geometry": ("Plane",),
    "global_direction": ("AtSite", "BestSeparation", "Consensus", "MaxMeanCosine"),
    "models": ("load_model",),
    "operators": (
        "Ablate",
        "ActAdd",
        "Add",
        "Reflect",
        "RotateBy",
        "RotateScale",
        "RotateTo",
        "RotateToIfAligned",
        "RotateToward",
        "SetAngle",
    ),
    "planes": ("ClassMeans", "Grassmann", "NextBest", "PC1", "RandomPlane", "RandomSecond"),
    "positions": ("AllPositions", "GeneratedOnly", "LastPrompt", "PromptOnly"),
    "selection": (
        "Discriminative",
        "EveryKth",
        "Explicit",
        "Half",
        "RandomSites",
        "TopK",
        "Uniform",
    ),
    "sites": ("Site",),
    "steering": ("steer", "steer_all"),
    "store": ("Store",),
    "sweep_config": ("SweepConfig", "load_sweep_config"),
    "sweeps": ("SweepResult", "load_sweep", "run_sweep"),
    "trace": ("Trace",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Ablate",
    "AblationConfig",
    "AblationResult",
    "ActAdd",
    "Activations",
    "Add",
    "AllPositions",
    "AngleChoice",
    "AngleCriterion",
    "AtSite",
    "BestSeparation",
    "Calibration",
    "CaptureSpec",
    "CentredPCA",
    "ClassMeans",
    "Consensus",
    "ContrastiveDataset",
    "Dictionary",
    "DifferenceOfMeans",
    "Discriminative",
    "EveryKth",
    "Evidence",
    "Explicit",
    "Fisher",
    "GeneratedOnly",
    "Grassmann",
    "Half",
    "LastPrompt",
    "Logistic",
    "MaxMeanCosine",
    "NextBest",
    "PC1",
    "PairedPCA",
    "Plane",
    "PromptOnly",
    "RandomPlane",
    "RandomSecond",
    "RandomSites",
    "Recipe",
    "Reflect",
    "RotateBy",
    "RotateScale",
    "RotateTo",
    "RotateToIfAligned",
    "RotateToward",
    "Run",
    "RunConfig",
    "SetAngle",
    "Site",
    "Store",
    "SweepConfig",
    "SweepResult",
    "TopK",
    "Trace",
    "Uniform",
    "UserError",
    "calibrate",
    "capture",
    "choose_angle",
    "generate",
    "load_ablations",
    "load_dataset",
    "load_model",
    "load_run",
    "load_sweep",
    "load_sweep_config",
    "run_ablations",
    "run_main_job",
    "run_sweep",
    "steer",
    "steer_all",
    "sweep_angles",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ss_lens' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ss_lens.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``ss_lens.capture`` the function, though a module of that name is imported too."""

    def __setattr__(self, name: str, value: object) -> None:
        # The import system sets each loaded submodule on its package, which would hide the name.
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
