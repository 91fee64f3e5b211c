"""A calibration as a folder: safetensors for the tensors, sealed JSON for the rest, no pickle."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ss_lens.activations.spec import CaptureSpec
from ss_lens.calibration.candidates import Candidates
from ss_lens.calibration.global_direction import GlobalDirection
from ss_lens.calibration.published.untrusted import Layout
from ss_lens.calibration.recipe import Fit, Recipe
from ss_lens.calibration.selection import Selection
from ss_lens.core.errors import UserError
from ss_lens.core.files import (
    atomic_path,
    check_replaceable,
    read_json,
    sha256_of_file,
)
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.geometry.plane import Plane
from ss_lens.models.sites import Site

FORMAT = 2
JSON, TENSORS = "calibration.json", "calibration.safetensors"
UNSEALED = {
    *("format", "ss_lens", "direction_site", "recipe", "plane_report", "selection", "spec"),
    "safetensors_sha256",
}
"""The keys of calibrations that were saved before their JSON had a digest."""
_REMEDY = "calibrate again"
_NAMES = {"Infinity": math.inf, "-Infinity": -math.inf}
"""Numbers that JSON has no word for; NaN is null."""


def write_calibration(folder: Path, made: Fit, *, overwrite: bool) -> None:
    """Write the folder, atomically; what it holds already stays where it is the same.

    Raises:
        UserError: the folder holds another calibration and ``overwrite`` is off, or something else.
    """
    check_replaceable(folder, {JSON, TENSORS}, "calibration")
    tensors = save(
        {
            "directions": made.candidates.directions,
            "valid": made.candidates.valid,
            "lengths": made.candidates.lengths,
            # A view of one candidate's row, which safetensors would refuse to share.
            "direction": made.direction.vector.clone(),
            "direction_scores": made.direction.scores,
            "plane": made.plane.basis,
            "selected": made.selection.mask,
        }
    )
    content = {
        "format": FORMAT,
        "ss_lens": version("ss_lens"),
        "direction_site": made.direction.site and str(made.direction.site),
        "recipe": made.recipe.as_json(),
        "plane_report": {name: _as_json(value) for name, value in made.report.items()},
        "selection": _as_columns(made.selection.table),
        "spec": made.spec.as_json(),
        "safetensors_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        if _holds(folder, content):
            return
        raise UserError(
            f"{folder} holds another calibration, or a damaged one, which would be replaced; "
            "choose another folder, or replace it with overwrite=True (--overwrite on the command "
            "line)."
        )
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / TENSORS).write_bytes(tensors)
        write_sealed_json(temporary / JSON, content)


def read_calibration(path: Path) -> Fit:
    """Read what :func:`write_calibration` wrote, or a calibration from before there were seals.

    Raises:
        UserError: absent, damaged, edited, or of another format.
    """
    found = read_json(path / JSON, "calibration", remedy=_REMEDY)
    if isinstance(found, dict) and (number := found.get("format")) != FORMAT:
        raise UserError(
            f"the calibration at {path} has format {number}, this version reads {FORMAT}; "
            f"{_REMEDY}."
        )
    content = read_sealed_json(path / JSON, "calibration", unsealed=UNSEALED, remedy=_REMEDY)
    meta = Layout(path / JSON, content, "Calibrate again.")
    spec = _spec_in(meta)
    with torch.inference_mode(False):  # a tensor made there could carry no gradient later
        tensors = _tensors_in(path / TENSORS, meta, spec)
    named = meta.at("direction_site") and meta.text("direction_site")
    report = meta.at("plane_report")
    if not isinstance(report, dict):
        raise meta.error("plane_report", report, "a dictionary by name")
    return Fit(
        candidates=Candidates(
            tensors["directions"], tensors["valid"], spec.sites, tensors["lengths"]
        ),
        direction=GlobalDirection(
            vector=tensors["direction"],
            site=Site.parse(named) if named else None,
            scores=tensors["direction_scores"],
        ),
        plane=Plane(*tensors["plane"].unbind(0)),
        report={
            name: _number(value, meta, f"plane_report.{name}") for name, value in report.items()
        },
        selection=Selection(tensors["selected"], _table_in(meta, spec)),
        recipe=_recipe_in(meta),
        spec=spec,
    )


def _holds(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether the folder holds just this, whichever version of ss_lens wrote it."""
    try:
        found = read_sealed_json(folder / JSON, "calibration", unsealed=UNSEALED)
        same = {**found, "ss_lens": ""} == {**content, "ss_lens": ""}
        return same and sha256_of_file(folder / TENSORS) == content["safetensors_sha256"]
    except (UserError, FileNotFoundError):
        return False


def _tensors_in(path: Path, meta: Layout, spec: CaptureSpec) -> dict[str, Tensor]:
    expected = meta.text("safetensors_sha256")
    try:
        data = path.read_bytes()
        whole = hashlib.sha256(data).hexdigest() == expected
        tensors = load(data) if whole else {}
    except (FileNotFoundError, SafetensorError):
        whole, tensors = False, {}
    if not whole:
        raise UserError(f"{path} is missing or damaged (its checksum differs); {_REMEDY}.")
    n, d = len(spec.sites), spec.model.d_model
    shapes = {
        **{"directions": (n, d), "direction": (d,), "plane": (2, d)},
        **{"lengths": (n,), "direction_scores": (n,), "valid": (n,), "selected": (n,)},
    }
    for name, shape in shapes.items():
        found = tensors.get(name)
        kind = torch.bool if name in ("valid", "selected") else torch.float32
        if found is None or found.shape != shape or found.dtype != kind:
            got = "missing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise UserError(
                f"{path} is of another layout: {name} is {got}; expected {kind} of shape {shape}. "
                "Calibrate again."
            )
    return tensors


def _spec_in(meta: Layout) -> CaptureSpec:
    try:
        return CaptureSpec.from_json(meta.at("spec"))
    except UserError as error:
        raise UserError(f"{meta.path} is of another layout: {error} {meta.remedy}") from error


def _recipe_in(meta: Layout) -> Recipe:
    parts = ("direction", "choice", "plane", "rule")
    return Recipe.from_json({part: meta.text("recipe", part) for part in parts})


def _table_in(meta: Layout, spec: CaptureSpec) -> pd.DataFrame:
    """The table of the selection, whose rows must be the sites."""
    columns = meta.table("selection")
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != len(spec.sites):
            raise meta.error(f"selection.{name}", values, f"a list of {len(spec.sites)} values")
    if columns.get("site") != [str(site) for site in spec.sites]:
        raise meta.error("selection.site", columns.get("site"), "the sites of spec, in their order")
    if not all(isinstance(on, bool) for on in columns.get("selected", [None])):
        raise meta.error("selection.selected", columns.get("selected"), "True or False per site")
    return pd.DataFrame({name: _column(values) for name, values in columns.items()})


def _column(values: list[Any]) -> list[Any]:
    if any(isinstance(value, str) and value not in _NAMES for value in values):
        return values  # text
    return [
        math.nan if v is None else _NAMES.get(v, v) if isinstance(v, str) else v for v in values
    ]


def _number(value: Any, meta: Layout, what: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str) and value in _NAMES:
        return _NAMES[value]
    if not isinstance(value, float | int):
        raise meta.error(what, value, "a number")
    return float(value)


def _as_json(value: Any) -> Any:
    """NaN as null, and infinity as text, since JSON has a word for neither."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _as_columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    columns = table.to_dict("list").items()
    return {str(name): [_as_json(value) for value in values] for name, values in columns}
