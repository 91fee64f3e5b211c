"""What a figure of a run can draw: the calibration and both parts of the activations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ss_lens import Activations, Calibration, Store, load_run
from ss_lens.behaviours.measures import REFUSAL, Measures


@dataclass(frozen=True, eq=False)
class RunParts:
    """The calibration of a run, the activations it was made on, and those it has not seen.

    Attributes:
        dial: scores by way of steering and angle; empty in runs of earlier versions.
        measures: what the behaviour's columns are called.
    """

    calibration: Calibration
    train: Activations
    test: Activations
    dial: pd.DataFrame
    measures: Measures = REFUSAL

    @classmethod
    def load(cls, run_dir: Path, store: Store | None = None) -> RunParts:
        """Read a run's directory, and its activations from the store.

        Raises:
            UserError: there is no run, or the store lacks its activations.
        """
        run = load_run(run_dir)
        store = store or Store()
        train, test = (store.load(run.activations[part]) for part in ("train", "test"))
        return cls(run.calibration, train, test, run.dial, run.measures)

    @property
    def seen(self) -> str:
        """What the calibration was made on, as a subtitle."""
        spec = self.train.spec
        return (
            f"{spec.model.name}; {spec.dataset_name}: {spec.n_positive} + {spec.n_negative} prompts"
        )

    @property
    def unseen(self) -> str:
        """What it was not made on, as a subtitle."""
        spec = self.test.spec
        return (
            f"{self.train.spec.model.name}; {spec.dataset_name}: {spec.n_positive} + "
            f"{spec.n_negative} prompts that the calibration has not seen"
        )
