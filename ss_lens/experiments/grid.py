"""Arms of a sweep: what the cells of one angle–response curve share, as canonical text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ss_lens.calibration.planes import PlaneMethod
from ss_lens.calibration.selection import SelectionRule
from ss_lens.calibration.site_selection import as_rule, rule_name
from ss_lens.core.errors import UserError
from ss_lens.core.values import read_value
from ss_lens.generation.angle_batch import NO_ANGLE
from ss_lens.geometry.operators import AngularOperator, Operator
from ss_lens.geometry.strengths import reduced


@dataclass(frozen=True)
class Arm:
    """One choice of everything but the angle. Equal choices are equal texts, however written.

    >>> Arm(model="m", dataset="refusal", operator="SetAngle(magnitude=4)", plane="PC1").operator
    'SetAngle(magnitude=4.0)'

    Attributes:
        model: as :func:`ss_lens.load_model` takes it.
        dataset: as :func:`ss_lens.load_dataset` takes it.
        operator: one with an angle, written without it, or one that has none, such as ``Ablate``
            or ``Add(alpha=-4)``: a single cell, which tables place at 0 degrees.
        selection: shorthand or text of a selection rule.
        plane: text of a plane method.
        labels: the classes as they are, or ``shuffled`` among the prompts to calibrate on.
        seed: of what is drawn; ``None`` where nothing is.

    Raises:
        UserError: a text that cannot be read, or a selection that needs neutral prompts.
    """

    model: str
    dataset: str
    operator: str = "RotateBy"
    selection: str = "site"
    plane: str = "PC1()"
    labels: Literal["true", "shuffled"] = "true"
    seed: int | None = None

    def __post_init__(self) -> None:
        rule = self.rule
        if rule.needs == "neutral":
            raise UserError(
                f"selection {self.selection!r} needs neutral prompts, which a sweep has not; use "
                "one without centred=True."
            )
        canonical = {
            "operator": _operator_text(self.operator_value),
            "selection": rule_name(rule),
            "plane": repr(self.plane_method),
        }
        for name, text in canonical.items():
            object.__setattr__(self, name, text)

    @property
    def operator_value(self) -> Operator:
        """The operator, at angle 0 where it has one."""
        name, parenthesis, rest = self.operator.strip().partition("(")
        if name not in (kind.__name__ for kind in AngularOperator.kinds()):
            kinds = (*AngularOperator.kinds(), *_WITHOUT_ANGLE)
            return _one_strength(read_value(self.operator, kinds, "operator"))
        if "angle_deg" in rest:
            raise UserError(
                f"operator {self.operator!r} holds an angle; the angles of a sweep are angles_deg."
            )
        whole = f"{name}(angle_deg=0.0, {rest}" if parenthesis else f"{name}(angle_deg=0.0)"
        value = read_value(whole, AngularOperator.kinds(), "operator")
        return _one_strength(value)

    def angles_of(self, angles_deg: tuple[float, ...]) -> tuple[float, ...]:
        """The angles to sweep: those given, or the one place of an operator without an angle."""
        return angles_deg if isinstance(self.operator_value, AngularOperator) else NO_ANGLE

    @property
    def rule(self) -> SelectionRule:
        return as_rule(self.selection)

    @property
    def plane_method(self) -> PlaneMethod:
        return read_value(self.plane, get_args(PlaneMethod), "plane")


@dataclass(frozen=True)
class CellGroup:
    """An arm on the prompts of one class of one part of the dataset; each angle is a cell.

    Only the ``first_prompts`` are taken, where that is a number.
    """

    arm: Arm
    part: Literal["dev", "test"]
    prompt_class: Literal["positive", "negative"]
    angles_deg: tuple[float, ...]
    first_prompts: int | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """What tells the group's rows from others in a table."""
        return {**asdict(self.arm), "part": self.part, "prompt_class": self.prompt_class}

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "angles_deg": list(self.angles_deg)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CellGroup:
        return cls(
            Arm(**values["arm"]),
            values["part"],
            values["prompt_class"],
            tuple(map(reduced, values["angles_deg"])),
            values.get("first_prompts"),
        )


ARM_COLUMNS = tuple(field.name for field in fields(Arm))


_WITHOUT_ANGLE = tuple(
    kind
    for kind in Operator.kinds()
    if kind not in AngularOperator.kinds() and not kind.needs_length
)
"""One that needs a length acts at one site alone, whatever the arm selects."""


def _one_strength(operator: Operator) -> Operator:
    if operator.rows is not None:
        raise UserError(f"operator {operator!r} holds several strengths; give one number.")
    return operator


def _operator_text(operator: Operator) -> str:
    """``SetAngle(magnitude=4.0)``: the fields but the angle, or the bare name without any."""
    others = [field.name for field in fields(operator) if field.name != "angle_deg"]
    values = ", ".join(f"{name}={float(getattr(operator, name))!r}" for name in others)
    return f"{type(operator).__name__}({values})" if others else type(operator).__name__
