"""What the norm audit says about the paper's two propositions, in sentences made from its table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analyses.norm_audit.conditions import BENT, EXACT, ROUNDED
from ss_lens import UserError

IN_THEORY = (EXACT, "float64", "float64")
"""Basis, dtype and arithmetic in which the statements of mathematics are tested."""
ROUNDING = 1e-12
"""A relative change that float64 does not produce by rounding."""
PHASE_TOLERANCE = 1e-6
"""A difference of resultant lengths that counts as none."""


def findings(table: pd.DataFrame) -> list[str]:
    """What the table of :func:`measure` says about Propositions 1 and 2 of arXiv 2601.19375.

    Raises:
        UserError: ``RotateTo`` or ``RotateBy`` was not audited.
    """
    if missing := {"RotateTo", "RotateBy"} - {*table["operator"]}:
        raise UserError(
            f"{min(missing)} was not audited, and the propositions are about it; add it."
        )
    said = _on_the_propositions(table)
    for basis in (ROUNDED, BENT):
        deviation = float(table.loc[table["basis"] == basis, "basis_deviation"].max())
        said.append(
            f"The basis alone, {basis} (off orthonormal by {_short(deviation)}), in float64: "
            f"{_both(table, basis, 'float64', 'float64')}."
        )
    said.append(
        "The arithmetic alone, with an orthonormal basis: activations in float32, "
        f"{_both(table, EXACT, 'float32', 'float32')}; in bfloat16, computed in float32, "
        f"{_both(table, EXACT, 'bfloat16', 'float32')}."
    )
    said.append(
        "Both, the published dense form in bfloat16 with the basis bent as published: "
        f"{_both(table, BENT, 'bfloat16', 'bfloat16')}."
    )
    inexact = {
        tuple(map(str, row)) for row in table[["basis", "dtype", "arithmetic"]].to_numpy()
    } - {IN_THEORY}
    ratios = [
        _largest(table, "norm_max", "RotateTo", *condition)
        / _largest(table, "norm_max", "RotateBy", *condition)
        for condition in inexact
    ]
    said.append(
        f"Over all {len(ratios)} conditions but the orthonormal basis in float64, the largest "
        f"change by rotate_to is {min(ratios):.2f} to {max(ratios):.2f} times that by rotate_by."
    )
    phases = []
    for operator, name in (("RotateBy", "rotate_by"), ("RotateTo", "rotate_to")):
        before = _largest(table, "phase_before", operator, *IN_THEORY)
        after = _largest(table, "phase_after", operator, *IN_THEORY)
        kept, alike = (abs(after - r) <= PHASE_TOLERANCE for r in (before, 1))
        verb = "keeps" if kept else "collapses" if alike else "changes"
        phases.append(f"{name} {verb} it ({before:.2f} → {after:.2f})")
    said.append(
        "The spread of the in-plane phases (resultant length, 1 where all are alike): "
        f"{', '.join(phases)}."
    )
    return said


def _on_the_propositions(table: pd.DataFrame) -> list[str]:
    said = []
    for number, claim, operator, violates in (
        (1, "Standard Angular Steering, rotate_to, violates the norm", "RotateTo", True),
        (2, "Selective Steering, rotate_by, preserves the norm", "RotateBy", False),
    ):
        change = _largest(table, "norm_max", operator, *IN_THEORY)
        verdict = "holds" if (change > ROUNDING) == violates else "does not hold"
        said.append(
            f"Proposition {number} ({claim}), as mathematics: {verdict}. With an orthonormal "
            f"basis in float64 the largest change of a norm is {_short(change)} of it."
        )
    keeping, changing, leaving = [], [], []
    for row in table[(table["basis"] == EXACT) & (table["dtype"] == "float64")].itertuples():
        if row.operator in ("RotateTo", "RotateBy"):
            continue
        if row.norm_max > ROUNDING:
            changing.append(f"{row.setting} by up to {row.norm_max:.2g}")
        else:
            keeping.append(str(row.setting))
        if row.outside_max > ROUNDING:
            leaving.append(f"{row.setting} by up to {row.outside_max:.2g}")
    said.append(
        f"Of the others, there, these keep the norm: {_listed(keeping)}; these change it, by parts "
        f"of itself: {_listed(changing)}; these act outside the plane, by parts of the norm: "
        f"{_listed(leaving)}."
    )
    return said


def _largest(
    table: pd.DataFrame, column: str, operator: str, basis: str, dtype: str, arithmetic: str
) -> float:
    wanted = {"operator": operator, "basis": basis, "dtype": dtype, "arithmetic": arithmetic}
    rows = (table[list(wanted)] == pd.Series(wanted)).all(axis=1)
    return float(table.loc[rows, column].max())


def _both(table: pd.DataFrame, basis: str, dtype: str, arithmetic: str) -> str:
    to, by = (
        _short(_largest(table, "norm_max", operator, basis, dtype, arithmetic))
        for operator in ("RotateTo", "RotateBy")
    )
    return f"rotate_to up to {to}, rotate_by up to {by}"


def _short(value: float) -> str:
    """Two digits, without the zeros that Python pads an exponent with."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
