"""A calibration: the direction, the plane and the sites to steer, with where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations import Activations, CaptureSpec
from ss_lens.directions import (
    Candidates,
    difference_of_means,
    first_principal_component,
    global_direction,
    mean_cosine,
)
from ss_lens.errors import UserError
from ss_lens.files import (
    atomic_path,
    read_json,
    sha256_of_file,
    write_json,
    write_safetensors,
)
from ss_lens.geometry import Plane
from ss_lens.models import identify
from ss_lens.selection import ClassProjections, Rule, class_projections, select
from ss_lens.sites import Site, Stream

FORMAT = 1
CALIBRATION_STREAMS: tuple[Stream, ...] = ("ln1_out", "ln2_out")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What :func:`calibrate` found.

    Attributes:
        candidates: one unit direction per site; excluded sites have none.
        direction_site: the site whose candidate is the global direction.
        plane: ``b1`` is the global direction, ``b2`` completes the plane.
        projected: class means of the projections that the selection was decided by.
        mean_cosine: agreement of each candidate with the others.
        selected: the sites to steer.
        rule: how they were selected.
        spec: the activations it was fitted on.
    """

    candidates: Candidates
    direction_site: Site
    plane: Plane
    projected: ClassProjections
    mean_cosine: Float[Tensor, "site"]
    selected: Bool[Tensor, "site"]
    rule: Rule
    spec: CaptureSpec

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.spec.sites

    @property
    def directions(self) -> Float[Tensor, "site d_model"]:
        return self.candidates.directions

    @property
    def selected_sites(self) -> tuple[Site, ...]:
        return tuple(site for site, on in zip(self.sites, self.selected, strict=True) if on)

    def check_fits(self, model: TransformerBridge) -> None:
        """Raise a :class:`UserError` unless this calibration was made on exactly this model."""
        mine, theirs = self.spec.model, identify(model)
        if mine.d_model != theirs.d_model or mine.n_layers != theirs.n_layers:
            problem = (
                f"is for {mine.n_layers} layers of width {mine.d_model}, the model "
                f"{theirs.name!r} has {theirs.n_layers} of width {theirs.d_model}"
            )
        elif mine.dtype != theirs.dtype:
            problem = (
                f"was made in {mine.dtype}, the model is in {theirs.dtype} "
                f"(load_model(..., dtype={mine.dtype!r}) gives the first)"
            )
        elif mine.fingerprint != theirs.fingerprint:
            problem = (
                f"was made on {mine.name!r} (weights {mine.fingerprint[:12]}), this is "
                f"{theirs.name!r} (weights {theirs.fingerprint[:12]})"
            )
        else:
            return
        raise UserError(f"the calibration {problem}. Calibrate again on this model.")

    def save(self, folder: Path | str) -> None:
        """Write ``folder``, atomically: safetensors for the numbers, JSON for the rest."""
        folder = Path(folder)
        files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if files - {"calibration.json", "calibration.safetensors"} or folder.is_file():
            raise UserError(
                f"{folder} holds something that is not a calibration and would be replaced; choose "
                "another folder."
            )
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_safetensors(
                temporary / "calibration.safetensors",
                {
                    "directions": self.directions,
                    "valid": self.candidates.valid,
                    "plane": self.plane.basis,
                    "positive_projection": self.projected.positive,
                    "negative_projection": self.projected.negative,
                    "mean_cosine": self.mean_cosine,
                    "selected": self.selected,
                },
            )
            write_json(
                temporary / "calibration.json",
                {
                    "format": FORMAT,
                    "ss_lens": version("ss_lens"),
                    "direction_site": str(self.direction_site),
                    "rule": self.rule,
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
        return cls(
            candidates=Candidates(tensors["directions"], tensors["valid"], spec.sites),
            direction_site=Site.parse(meta["direction_site"]),
            plane=Plane(*tensors["plane"].unbind(0)),
            projected=ClassProjections(
                tensors["positive_projection"], tensors["negative_projection"]
            ),
            mean_cosine=tensors["mean_cosine"],
            selected=tensors["selected"],
            rule=meta["rule"],
            spec=spec,
        )


def calibrate(
    acts: Activations,
    *,
    streams: Sequence[Stream] = CALIBRATION_STREAMS,
    rule: Rule = "site",
) -> Calibration:
    """Fit direction, plane and site selection (steps 1–4 of arXiv 2601.19375).

    Candidates are differences of class means; the global direction ``b1`` is the one with the
    highest mean cosine similarity to the others; ``b2`` is the first principal component of the
    centred candidates, orthonormalised against ``b1``.

    Args:
        acts: from :func:`ss_lens.capture`.
        streams: which of the captured streams to calibrate on. The default is the residual stream
            as attention and MLP read it, the paper's sites. Norm outputs and residual streams are
            different quantities and cannot be mixed.
        rule: which sites to steer; see :func:`ss_lens.selection.select`.

    Raises:
        UserError: streams of different kinds, no direction anywhere, or no site selected.
    """
    acts = acts.restricted_to(streams)
    if len({site.is_norm_output for site in acts.sites}) > 1:
        raise UserError(
            f"streams {', '.join(streams)} mix norm outputs with residual streams, whose scales "
            "differ; calibrate them separately."
        )
    candidates = difference_of_means(acts)
    chosen = global_direction(candidates)
    b1 = candidates.directions[chosen]
    plane = Plane.from_span(b1, first_principal_component(candidates))
    projected = class_projections(acts, plane.b1)
    return Calibration(
        candidates=candidates,
        direction_site=acts.sites[chosen],
        plane=plane,
        projected=projected,
        mean_cosine=mean_cosine(candidates),
        selected=select(projected, acts.sites, rule),
        rule=rule,
        spec=acts.spec,
    )
