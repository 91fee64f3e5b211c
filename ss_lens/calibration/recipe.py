"""The four choices that make a calibration, and what they find in activations."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple, get_args

from ss_lens.activations.activations import Evidence
from ss_lens.activations.spec import CaptureSpec
from ss_lens.calibration.candidates import Candidates
from ss_lens.calibration.directions import DifferenceOfMeans, DirectionMethod
from ss_lens.calibration.global_direction import GlobalChoice, GlobalDirection, MaxMeanCosine
from ss_lens.calibration.planes import PC1, PlaneMethod
from ss_lens.calibration.selection import RULES, Selection, SelectionRule
from ss_lens.calibration.site_selection import Discriminative
from ss_lens.core.checks import check_is
from ss_lens.core.values import read_value
from ss_lens.geometry.plane import Plane


@dataclass(frozen=True)
class Recipe:
    """The four choices that make a calibration; the defaults are those of arXiv 2601.19375.

    Raises:
        UserError: a choice of another type.
    """

    direction: DirectionMethod = field(default_factory=DifferenceOfMeans)
    choice: GlobalChoice = field(default_factory=MaxMeanCosine)
    plane: PlaneMethod = field(default_factory=PC1)
    rule: SelectionRule = field(default_factory=Discriminative)

    def __post_init__(self) -> None:
        for name, kinds, example in (
            ("direction", get_args(DirectionMethod), "DifferenceOfMeans()"),
            ("choice", get_args(GlobalChoice), "MaxMeanCosine()"),
            ("plane", get_args(PlaneMethod), "PC1()"),
            ("rule", (SelectionRule,), "Discriminative()"),
        ):
            check_is(name, getattr(self, name), kinds, f"a method such as {example}")

    def as_json(self) -> dict[str, str]:
        return {part.name: repr(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_json(cls, texts: dict[str, str]) -> Recipe:
        kinds = {
            "direction": get_args(DirectionMethod),
            "choice": get_args(GlobalChoice),
            "plane": get_args(PlaneMethod),
            "rule": RULES,
        }
        return cls(**{name: read_value(texts[name], kinds[name], name) for name in kinds})

    def fit(self, evidence: Evidence) -> Fit:
        """Candidates, direction, plane and selection, each from those before it.

        Raises:
            UserError: what the four methods raise.
        """
        return self.complete(self.direction.candidates(evidence.train), evidence)

    def complete(self, candidates: Candidates, evidence: Evidence) -> Fit:
        """As :meth:`fit`, from candidates that are there already."""
        chosen = self.choice.choose(candidates, evidence)
        fitted = self.plane.build(chosen, candidates, evidence)
        selection = self.rule.select(evidence, fitted.plane)
        spec = evidence.train.spec
        return Fit(candidates, chosen, fitted.plane, fitted.report, selection, self, spec)


class Fit(NamedTuple):
    """What a recipe found; :class:`ss_lens.Calibration` says what each part is."""

    candidates: Candidates
    direction: GlobalDirection
    plane: Plane
    report: dict[str, float]
    selection: Selection
    recipe: Recipe
    spec: CaptureSpec
