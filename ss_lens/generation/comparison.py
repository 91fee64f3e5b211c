"""One question under several operators, unsteered first, from a model that is loaded once."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.calibration.calibration import Calibration
from ss_lens.core.errors import UserError
from ss_lens.core.values import read_value
from ss_lens.generation.angle_batch import NO_ANGLE, Angled, sweep_angles
from ss_lens.geometry.operators import Ablate, Add, AngularOperator, Operator, Reflect
from ss_lens.models.chat import DEFAULT_FORMAT, ChatFormat, Prompt
from ss_lens.steering.positions import ALL_POSITIONS, Positions

COLUMNS = ("prompt_index", "prompt", "operator", "angle_deg", "response")


def compare_operators(
    model: TransformerBridge,
    calibration: Calibration,
    operators: Sequence[Angled],
    prompts: Sequence[Prompt],
    angles_deg: Sequence[float | int],
    *,
    max_new_tokens: int = 64,
    positions: Positions = ALL_POSITIONS,
    chat: ChatFormat = DEFAULT_FORMAT,
) -> pd.DataFrame:
    """Answer each prompt without steering, and under every operator at every angle.

    Args:
        model: that the calibration was made on.
        calibration: plane and sites.
        operators: classes with an angle, and values without one, which answer once.
        prompts: the users' turns, or lists of turns.
        angles_deg: in degrees.
        max_new_tokens: where an answer is cut off.
        positions: which tokens are steered.
        chat: system prompt, date and further arguments of the template.

    Returns:
        :data:`COLUMNS`, by prompt; the first row of each is ``unsteered``, without an angle.

    Raises:
        UserError: no operator, or what :func:`ss_lens.sweep_angles` raises.
    """
    if not operators:
        raise UserError("no operator is given, expected at least one; name one such as RotateBy.")
    tables = []
    for place, operator in enumerate(operators):
        kind = operator if isinstance(operator, type) else type(operator)
        angular = issubclass(kind, AngularOperator)
        found = sweep_angles(
            model,
            calibration,
            operator,
            prompts,
            angles_deg if angular else NO_ANGLE,
            max_new_tokens=max_new_tokens,
            positions=positions,
            chat=chat,
            unsteered=place == 0,
        )
        name = kind.__name__ if angular else repr(operator)
        still = found["angle_deg"].isna()
        found.insert(2, "operator", [("unsteered" if s else name) for s in still])
        tables.append(found if angular else found.assign(angle_deg=float("nan")))
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values("prompt_index", kind="stable", ignore_index=True).filter([*COLUMNS])


def read_operators(text: str, calibration: Calibration) -> tuple[Angled, ...]:
    """The operators in ``rotate_by,RotateTo,add``: by the name of their map or of their class.

    ``add`` alone adds and takes away one gap (:func:`class_gap`); ``Add(alpha=4)`` says how much.

    Raises:
        UserError: an unknown name, or one that needs more than a name.
    """
    found: list[Angled] = []
    for part in _parts(text):
        if _is_add(part):
            gap = class_gap(calibration)
            found += [Add(alpha=gap), Add(alpha=-gap)]
        else:
            found.append(_named(part))
    return tuple(found)


def check_operators(text: str) -> None:
    """Raise what :func:`read_operators` says of the names, which need no calibration."""
    for part in _parts(text):
        if not _is_add(part):
            _named(part)


def class_gap(calibration: Calibration) -> float:
    """How far the class means lie apart along ``b1``, the mean over the steered sites.

    Raises:
        UserError: the calibration was published, and does not know how far.
    """
    candidates, b1 = calibration.candidates, calibration.plane.b1.to(calibration.directions.dtype)
    gaps = (candidates.directions @ b1 * candidates.lengths)[calibration.selected]
    gap = float(gaps.double().mean())
    if gap != gap:
        raise UserError(
            "the calibration does not know how far its classes lie apart, since its candidates "
            "were published normalised; write how much is added, like Add(alpha=4)."
        )
    return float(f"{gap:.4g}")


def _is_add(part: str) -> bool:
    """Whether an operator is ``add`` alone, whose size the calibration says."""
    return part.lower() == "add"


def _named(part: str) -> Angled:
    name = "".join(word[:1].upper() + word[1:] for word in part.split("_"))
    angular = {kind.__name__: kind for kind in AngularOperator.kinds()}
    if name in angular:
        return angular[name]
    plain = {kind.__name__: kind for kind in (Ablate, Reflect)}
    if name in plain:
        return plain[name]()
    if "(" in part:
        return read_value(part, Operator.kinds(), "operator")
    raise UserError(
        f"unknown operator {part!r:.60}, expected rotate_by, rotate_to, rotate_to_if_aligned, "
        "set_angle, add, ablate, reflect, or a value such as Add(alpha=4); check the name."
    )


def _parts(text: str) -> list[str]:
    """Split at commas that are outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = [part.strip() for part in parts]
    if not all(found):
        raise UserError(
            f"the operators {text!r:.60} have an empty name, expected names with commas between "
            "them; write for instance rotate_by,rotate_to,add."
        )
    return found
