"""Scores to take slopes of: of stored sweeps, and of questions under several calibrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import ss_lens
from analyses.steerability.questions import Question, contrast, score_questions
from ss_lens import UserError
from ss_lens.generation.angle_batch import Angled
from ss_lens.models.chat import ChatFormat

ARM = ("model", "dataset", "operator", "selection", "plane", "labels", "seed", "part")
NO_SYSTEM = "none"


def of_sweep(
    folder: Path | str, angles: tuple[float, float], score: str
) -> tuple[pd.DataFrame, list[str]]:
    """The scores of a stored sweep between two angles, and the columns that tell groups apart.

    Raises:
        UserError: no sweep, a score that it lacks, or fewer than two of its angles in the range.
    """
    table = ss_lens.load_sweep(folder).table
    low, high = angles
    if score not in table:
        raise UserError(
            f"the sweep at {folder} has no column {score!r}; it has {', '.join(table.columns)}."
        )
    rows = table.loc[table["angle_deg"].between(low, high)]
    if len(set(rows["angle_deg"])) < 2:
        held = ", ".join(f"{angle:g}" for angle in sorted(set(table["angle_deg"])))
        raise UserError(
            f"a slope needs two angles from {low:g} to {high:g}; the sweep at {folder} has {held}. "
            "Give another range."
        )
    varied = [name for name in ARM if name in rows and len(set(rows[name].astype(str))) > 1]
    return rows, [*varied, "prompt_class"]


def check_enough(files: Mapping[str, Sequence[Question]], n_train: int, n_test: int) -> None:
    """Raise for a set that has too few questions; cheap, so before a model is loaded."""
    for name, questions in files.items():
        if len(questions) < n_train + n_test:
            raise UserError(
                f"{name} has {len(questions)} questions; expected at least {n_train} to calibrate "
                f"on and {n_test} others to score. Ask for fewer."
            )


def of_questions(
    model: TransformerBridge,
    files: Mapping[str, Sequence[Question]],
    operator: Angled,
    angles_deg: Sequence[float],
    *,
    n_train: int,
    n_test: int,
    systems: Sequence[str] = (),
    across: bool = False,
    rule: str = "site",
) -> pd.DataFrame:
    """Scores of questions of each set, steered by a calibration on its own other questions.

    Args:
        model: calibrated and steered.
        files: questions by the name of their set.
        operator: the class, or one of its values.
        angles_deg: in degrees.
        n_train: questions per set to calibrate on, the first ones.
        n_test: questions per set to score, those after them.
        systems: system prompts to score under as well; calibrations are made without.
        across: also steer each set by the calibrations of the others.
        rule: which sites to steer, as in :func:`ss_lens.calibrate`.

    Returns:
        The columns of :func:`analyses.steerability.questions.score_questions`, and ``dataset``,
        ``calibrated_on`` and ``system``.

    Raises:
        UserError: a set with fewer questions, or what calibration and steering raise.
    """
    check_enough(files, n_train, n_test)
    calibrations = {}
    for name, questions in files.items():
        acts = ss_lens.capture(model, contrast(questions[:n_train], name))
        calibrations[name] = ss_lens.calibrate(acts, rule=rule)
    tables = []
    for name, questions in files.items():
        for made_on, calibration in calibrations.items():
            if made_on != name and not across:
                continue
            for system in (None, *systems):
                table = score_questions(
                    model,
                    calibration,
                    operator,
                    questions[n_train : n_train + n_test],
                    angles_deg,
                    chat=ChatFormat(system=system),
                )
                where = {"dataset": name, "calibrated_on": made_on, "system": system or NO_SYSTEM}
                tables.append(table.assign(**where))
    return pd.concat(tables, ignore_index=True)
