"""A calibration: the direction, the plane and the sites to steer, with where they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.spec import CaptureSpec
from ss_lens.calibration.candidates import Candidates
from ss_lens.calibration.global_direction import GlobalDirection
from ss_lens.calibration.published.reference import read_reference, write_reference
from ss_lens.calibration.recipe import Recipe
from ss_lens.calibration.site_selection import Selection, SelectionRule
from ss_lens.core.errors import UserError
from ss_lens.core.files import (
    atomic_path,
    check_replaceable,
    read_json,
    sha256_of_file,
    write_json,
    write_safetensors,
)
from ss_lens.geometry.plane import Plane
from ss_lens.models.load import identify
from ss_lens.models.sites import Site

FORMAT = 2


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
        """A calibration that the authors of arXiv 2601.19375 published, recomputed.

        Everything is computed from its candidates; see :mod:`ss_lens.calibration.published`.
        """
        return cls(*read_reference(folder))

    def to_reference(self, folder: Path | str) -> None:
        """Write the published layout; see :mod:`ss_lens.calibration.published`."""
        write_reference(
            folder,
            candidates=self.candidates,
            direction=self.direction,
            plane=self.plane,
            selected=self.selected,
            recipe=self.recipe,
            spec=self.spec,
        )


def _as_columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns as JSON values; NaN, which JSON lacks, becomes null."""
    return {
        str(name): [None if isinstance(v, float) and math.isnan(v) else v for v in column]
        for name, column in table.to_dict("list").items()
    }
