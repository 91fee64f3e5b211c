"""A calibration: the direction, the plane and the sites to steer, with where they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations import Activations, CaptureSpec, Evidence
from ss_lens.candidates import Candidates
from ss_lens.directions import DifferenceOfMeans, DirectionMethod
from ss_lens.errors import UserError
from ss_lens.files import (
    atomic_path,
    check_replaceable,
    read_json,
    sha256_of_file,
    write_json,
    write_safetensors,
)
from ss_lens.geometry import Plane
from ss_lens.global_direction import GlobalChoice, GlobalDirection, MaxMeanCosine
from ss_lens.models import identify
from ss_lens.planes import PC1, PlaneMethod
from ss_lens.selection import Discriminative, Selection, SelectionRule, as_rule
from ss_lens.sites import Site, Stream
from ss_lens.values import read_value

FORMAT = 2
CALIBRATION_STREAMS: tuple[Stream, ...] = ("ln1_out", "ln2_out")


@dataclass(frozen=True)
class Recipe:
    """The four choices that make a calibration; the defaults are those of arXiv 2601.19375."""

    direction: DirectionMethod = field(default_factory=DifferenceOfMeans)
    choice: GlobalChoice = field(default_factory=MaxMeanCosine)
    plane: PlaneMethod = field(default_factory=PC1)
    rule: SelectionRule = field(default_factory=Discriminative)

    def as_json(self) -> dict[str, str]:
        return {part.name: repr(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_json(cls, texts: dict[str, str]) -> Recipe:
        kinds = {
            "direction": DirectionMethod,
            "choice": GlobalChoice,
            "plane": PlaneMethod,
            "rule": SelectionRule,
        }
        return cls(**{name: read_value(texts[name], get_args(kinds[name]), name) for name in kinds})


@dataclass(frozen=True, eq=False)
class Calibration:
    """What :func:`calibrate` found.

    Attributes:
        candidates: one unit direction per site; excluded sites have none.
        direction: the global direction, the site it comes from and the scores it was chosen by.
        plane: ``b1`` is angle 0, ``b2`` completes the plane.
        report: what fitting the plane measured (empty for most methods).
        selection: the sites to steer and the numbers they were decided by.
        recipe: the methods.
        spec: the activations it was fitted on.
    """

    candidates: Candidates
    direction: GlobalDirection
    plane: Plane
    report: dict[str, float]
    selection: Selection
    recipe: Recipe
    spec: CaptureSpec

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.spec.sites

    @property
    def directions(self) -> Float[Tensor, "site d_model"]:
        return self.candidates.directions

    @property
    def direction_site(self) -> Site | None:
        """Where the global direction comes from; ``None`` for a consensus of all sites."""
        return self.direction.site

    @property
    def selected(self) -> Bool[Tensor, "site"]:
        return self.selection.mask

    @property
    def rule(self) -> SelectionRule:
        return self.recipe.rule

    @property
    def selected_sites(self) -> tuple[Site, ...]:
        return tuple(site for site, on in zip(self.sites, self.selected, strict=True) if on)

    def check_fits(self, model: TransformerBridge) -> None:
        """Raise a :class:`UserError` unless this calibration was made on exactly this model.

        A calibration whose publication names no weights is checked for its shape alone.
        """
        mine, theirs = self.spec.model, identify(model)
        if mine.d_model != theirs.d_model or mine.n_layers != theirs.n_layers:
            problem = (
                f"is for {mine.n_layers} layers of width {mine.d_model}, the model "
                f"{theirs.name!r} has {theirs.n_layers} of width {theirs.d_model}"
            )
        elif mine.fingerprint is None:
            return
        elif mine.dtype != theirs.dtype:
            problem = (
                f"was made in {mine.dtype}, the model is in {theirs.dtype} "
                f"(load_model(..., dtype={mine.dtype!r}) gives the first)"
            )
        elif mine.fingerprint != theirs.fingerprint:
            problem = (
                f"was made on {mine.name!r} (weights {mine.fingerprint[:12]}), this is "
                f"{theirs.name!r} (weights {str(theirs.fingerprint)[:12]})"
            )
        else:
            return
        raise UserError(f"the calibration {problem}. Calibrate again on this model.")

    def save(self, folder: Path | str) -> None:
        """Write ``folder``, atomically: safetensors for the tensors, JSON for the rest."""
        folder = Path(folder)
        names = {"calibration.json", "calibration.safetensors"}
        check_replaceable(folder, names, "calibration")
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_safetensors(
                temporary / "calibration.safetensors",
                {
                    "directions": self.directions,
                    "valid": self.candidates.valid,
                    "lengths": self.candidates.lengths,
                    # A view of one candidate's row, which safetensors would refuse to share.
                    "direction": self.direction.vector.clone(),
                    "direction_scores": self.direction.scores,
                    "plane": self.plane.basis,
                    "selected": self.selected,
                },
            )
            write_json(
                temporary / "calibration.json",
                {
                    "format": FORMAT,
                    "ss_lens": version("ss_lens"),
                    "direction_site": self.direction_site and str(self.direction_site),
                    "recipe": self.recipe.as_json(),
                    "plane_report": self.report,
                    "selection": _as_columns(self.selection.table),
                    "spec": self.spec.as_json(),
                    "safetensors_sha256": sha256_of_file(temporary / "calibration.safetensors"),
                },
            )

    @classmethod
    def load(cls, folder: Path | str) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: absent, damaged, or of another format.
        """
        path = Path(folder)
        meta = read_json(path / "calibration.json", "calibration")
        if meta.get("format") != FORMAT:
            raise UserError(
                f"the calibration at {path} has format {meta.get('format')}, this version reads "
                f"{FORMAT}; calibrate again."
            )
        tensors_path = path / "calibration.safetensors"
        try:
            whole = sha256_of_file(tensors_path) == meta["safetensors_sha256"]
            tensors = load_file(tensors_path) if whole else {}
        except (FileNotFoundError, SafetensorError):
            whole, tensors = False, {}
        if not whole:
            raise UserError(
                f"{tensors_path} is missing or damaged (its checksum differs); calibrate again."
            )
        spec = CaptureSpec.from_json(meta["spec"])
        named = meta["direction_site"]
        return cls(
            candidates=Candidates(
                tensors["directions"], tensors["valid"], spec.sites, tensors["lengths"]
            ),
            direction=GlobalDirection(
                vector=tensors["direction"],
                site=Site.parse(named) if named else None,
                scores=tensors["direction_scores"],
            ),
            plane=Plane(*tensors["plane"].unbind(0)),
            report=meta["plane_report"],
            selection=Selection(tensors["selected"], pd.DataFrame(meta["selection"])),
            recipe=Recipe.from_json(meta["recipe"]),
            spec=spec,
        )

    @classmethod
    def from_reference(cls, folder: Path | str) -> Calibration:
        """A calibration that the authors of arXiv 2601.19375 published, made anew.

        Everything is computed from its candidates; see
        :func:`ss_lens.references.read_reference`.
        """
        from ss_lens.references import read_reference

        return read_reference(folder)

    def to_reference(self, folder: Path | str) -> None:
        """Write the published layout; see :func:`ss_lens.references.write_reference`."""
        from ss_lens.references import write_reference

        write_reference(self, folder)


def calibrate(
    acts: Activations,
    *,
    streams: Sequence[Stream] = CALIBRATION_STREAMS,
    direction: DirectionMethod | None = None,
    choice: GlobalChoice | None = None,
    plane: PlaneMethod | None = None,
    rule: str | SelectionRule = "site",
    held_out: Activations | None = None,
    neutral: Activations | None = None,
) -> Calibration:
    """Fit direction, plane and site selection (steps 1–4 of arXiv 2601.19375).

    By default candidates are differences of class means; the global direction ``b1`` is the one
    with the highest mean cosine similarity to the others; ``b2`` is the first principal component
    of the centred candidates, orthonormalised against ``b1``. An ablation changes one argument.

    Args:
        acts: from :func:`ss_lens.capture`.
        streams: which of the captured streams to calibrate on. The default is the residual stream
            as attention and MLP read it, the paper's sites. Norm outputs and residual streams are
            different quantities and cannot be mixed.
        direction: how a site's candidate is found; see :mod:`ss_lens.directions`.
        choice: how the global direction is chosen; see :mod:`ss_lens.global_direction`.
        plane: how the plane is completed; see :mod:`ss_lens.planes`.
        rule: which sites to steer; see :mod:`ss_lens.selection`. ``"site"`` is the paper's,
            ``"block"`` the published code's, ``"uniform"`` every site.
        held_out: other prompts, for choices that must not be made on ``acts``.
        neutral: unrelated prompts, for ``Discriminative(centred=True)``.

    Raises:
        UserError: streams of different kinds, no direction anywhere, no site selected, or a method
            without the activations that it needs.
    """
    evidence = Evidence(acts, held_out, neutral).restricted_to(streams)
    acts = evidence.train
    if len({site.is_norm_output for site in acts.sites}) > 1:
        raise UserError(
            f"streams {', '.join(streams)} mix norm outputs with residual streams, whose scales "
            "differ; calibrate them separately."
        )
    recipe = Recipe(
        direction or DifferenceOfMeans(), choice or MaxMeanCosine(), plane or PC1(), as_rule(rule)
    )
    candidates = recipe.direction.candidates(acts)
    chosen = recipe.choice.choose(candidates, evidence)
    fitted = recipe.plane.build(chosen, candidates, evidence)
    selection = recipe.rule.select(evidence, fitted.plane)
    return Calibration(
        candidates, chosen, fitted.plane, fitted.report, selection, recipe, acts.spec
    )


def _as_columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns as JSON values; NaN, which JSON lacks, becomes null."""
    return {
        str(name): [None if isinstance(v, float) and math.isnan(v) else v for v in column]
        for name, column in table.to_dict("list").items()
    }
