"""Which operators keep the norm: by mathematics, and in the arithmetic that is used for them?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.norm_audit.bent_bases import (
    DENSE,
    apply_as_published,
    apply_with_basis,
    bases,
    orthonormal_basis,
)
from analyses.norm_audit.conditions import EXACT
from ss_lens import Activations, Calibration, Plane, UserError
from ss_lens.core.progress import progress_bar
from ss_lens.geometry.blockwise import widened
from ss_lens.geometry.operators import AngularOperator, Operator

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def audited() -> tuple[Operator, ...]:
    """One value of every operator that acts without a calibration's length.

    Angles are 120°, which is no special one (at 90° the target of a rotation would be ``b2``), and
    30° where the whole activation turns; other strengths are 1.
    """
    values = []
    for kind in Operator.kinds():
        if kind.needs_length:  # bound to a length it is Add
            continue
        strength = 1.0
        if issubclass(kind, AngularOperator):
            strength = 120.0 if kind.stays_in_plane else 30.0
        values.append(kind(**({} if kind.strength is None else {kind.strength: strength})))
    return tuple(values)


def measure(
    acts: Activations, calibration: Calibration, operators: Sequence[Operator] | None = None
) -> pd.DataFrame:
    """What each operator does to the norm, to the complement of the plane and to the phase.

    Every number is taken in float64 against the exact plane, over all prompts of both classes at
    all sites that the calibration steers, from the activation as its dtype holds it.

    Args:
        acts: activations of any prompts of the calibration's model, at its sites.
        calibration: its plane and its selection.
        operators: with one strength each, for all rows; ``None`` is :func:`audited`.

    Returns:
        One row per operator and condition: ``operator``, ``setting`` (with its strength);
        ``basis`` (see :func:`analyses.norm_audit.bent_bases.bases`) and ``basis_deviation``, the
        largest entry of ``|B Bᵀ − 1|``; ``dtype`` of the activation and of the result, and
        ``arithmetic``, that of the computation between them (``bfloat16``: the published dense
        form, of the operators in ``DENSE``); ``norm_median``, ``norm_q95`` and ``norm_max`` of
        ``|‖h′‖/‖h‖ − 1|``; ``outside_median``, … of the change outside the plane,
        ``‖(1 − P)(h′ − h)‖/‖h‖``; ``phase_before`` and ``phase_after``, see
        :func:`resultant_length`; ``n`` activations.

    Raises:
        UserError: another model's activations, a steered site that was not captured, or an
            activation of length zero.
    """
    operators = audited() if operators is None else operators
    theirs = calibration.spec.model
    if theirs.fingerprint not in (None, acts.spec.model.fingerprint):
        raise UserError(
            f"the calibration was made on {theirs.name!r}, the activations are of "
            f"{acts.spec.model.name!r}; capture both on the same model."
        )
    h = torch.cat([side for site in calibration.selected_sites for side in acts.at(site)])
    if not (h.norm(dim=-1) > 0).all():
        raise UserError("an activation has length 0, so no relative change; leave its prompt out.")
    exact = orthonormal_basis(calibration.plane)
    rows = []
    made = bases(exact)
    with progress_bar(len(DTYPES) * len(made) * len(operators), "audit", "operator") as bar:
        for dtype, (name, basis) in product(DTYPES, made.items()):
            held = h.to(dtype)
            wide = widened(held).dtype
            used = basis.to(wide)
            deviation = (used.double() @ used.double().T - torch.eye(2).double()).abs().max()
            for operator in operators:
                rows += [
                    {
                        "operator": type(operator).__name__,
                        "setting": repr(operator),
                        "basis": name,
                        "basis_deviation": float(deviation),
                        "dtype": _name(dtype),
                        "arithmetic": _name(arithmetic),
                        **_changes(held.double(), after.double(), exact),
                    }
                    for arithmetic, after in _steered(operator, held, name, used).items()
                ]
                bar.update()
    return pd.DataFrame(rows)


def resultant_length(
    h: Float[Tensor, "row d_model"], basis: Float[Tensor, "2 d_model"]
) -> float | int:
    """Mean resultant length of the in-plane phases: 1 if all are alike, 0 if they cancel.

    An activation without any in-plane part has no phase and does not count.
    """
    p = torch.view_as_complex((h @ basis.T).contiguous())
    p = p[p.abs() > 0]
    return float((p / p.abs()).mean().abs())


def _steered(
    operator: Operator, held: Float[Tensor, "row d_model"], name: str, used: Tensor
) -> dict[torch.dtype, Float[Tensor, "row d_model"]]:
    """What the operator makes of the activations, by the dtype of the arithmetic."""
    if name == EXACT:
        return {used.dtype: operator.apply(held, Plane(*used.unbind()))}
    steered = {used.dtype: apply_with_basis(operator, held, used)}
    if held.dtype != used.dtype and type(operator) in DENSE:
        steered[held.dtype] = apply_as_published(operator, held, used)
    return steered


def _changes(
    before: Float[Tensor, "row d_model"],
    after: Float[Tensor, "row d_model"],
    basis: Float[Tensor, "2 d_model"],
) -> dict[str, float]:
    """Quantiles of both changes and the spread of the phases, of float64 activations."""
    norms, change = before.norm(dim=-1), after - before
    outside = change - (change @ basis.T) @ basis
    numbers: dict[str, float] = {}
    for what, values in (
        ("norm", (after.norm(dim=-1) / norms - 1).abs()),
        ("outside", outside.norm(dim=-1) / norms),
    ):
        numbers |= {
            f"{what}_median": float(values.quantile(0.5)),
            f"{what}_q95": float(values.quantile(0.95)),
            f"{what}_max": float(values.max()),
        }
    return {
        **numbers,
        "phase_before": resultant_length(before, basis),
        "phase_after": resultant_length(after, basis),
        "n": len(before),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
