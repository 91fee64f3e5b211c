"""Published calibrations: read as ours, compared with what their own candidates give here."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from ss_lens.activations.activations import Activations, Evidence
from ss_lens.activations.spec import CaptureSpec
from ss_lens.calibration.candidates import Candidates, signed_component
from ss_lens.calibration.global_direction import GlobalDirection
from ss_lens.calibration.published.files import Published, read_files, write_files
from ss_lens.calibration.published.module_names import modules_of_sites
from ss_lens.calibration.recipe import Fit, Recipe
from ss_lens.calibration.site_selection import Explicit
from ss_lens.core.errors import UserError
from ss_lens.geometry.plane import Plane
from ss_lens.models.identity import ModelIdentity
from ss_lens.models.sites import Site

UNIT_TOLERANCE = 0.01
"""Rows that are all this close to length 1 were normalised; bfloat16 alone makes up to 0.004."""
AGREEMENT = 0.99
"""Cosine below which our plane is another one than theirs; rounding alone leaves it over 0.9998."""


@dataclass(frozen=True)
class Agreement:
    """A published calibration beside what its own candidates give here; cosines are signed.

    The authors computed in bfloat16 and kept the zero candidate of block 0's first norm in the
    principal component; the default here is float64 without it.

    Attributes:
        published_site: the site whose candidate they chose as the direction.
        direction_site: the site with the highest mean cosine here.
        b1_cosine: between their first basis vector and ours.
        b2_cosine: between their second basis vector and ours.
        b2_cosine_zero_kept: the same with zero candidates kept in our principal component.
        overlap: ``|b1·b2|`` of their basis as stored; 0 if it were orthogonal.
        norm_deviation: the larger ``|‖b‖ − 1|`` of their basis as stored.
        n_modules: modules that they have candidates of.
        n_sites: different sites that these are.
        n_steered: modules that they steer.
        whole_blocks: whether they steer all modules of a block or none, in every block.
    """

    published_site: Site
    direction_site: Site
    b1_cosine: float
    b2_cosine: float
    b2_cosine_zero_kept: float
    overlap: float
    norm_deviation: float
    n_modules: int
    n_sites: int
    n_steered: int
    whole_blocks: bool

    @property
    def same_site(self) -> bool:
        return self.published_site == self.direction_site

    def as_report(self) -> dict[str, float]:
        """All of it as numbers, the two sites by whether they are the same (1 or 0)."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        del values["published_site"], values["direction_site"]
        return {
            f"published_{name}": float(value)
            for name, value in {"same_site": self.same_site, **values}.items()
        }


def read_reference(path: Path | str) -> Fit:
    """A calibration as the authors of arXiv 2601.19375 publish theirs, as one of ours.

    Direction and plane are recomputed from the published candidates, with the default methods
    and in full precision: the published basis is rounded to bfloat16, which bends the norm that
    steering should keep. The steered sites are the published ones. The report holds the numbers of
    :class:`Agreement`. The files do not identify the weights, so that the calibration fits any
    model of its shape. Nor do they say how long the differences of class means were, where the
    candidates are normalised; ``candidates.lengths`` are then NaN.

    Args:
        path: the folder with ``directions.pt``, ``plane.pt`` and ``metadata.json``.

    Raises:
        UserError: absent, damaged, of another layout, or holding code, of which none is executed.

    Warns:
        UserWarning: the published direction or plane is not what the candidates give.
    """
    published = read_files(path)
    made = _recomputed(published)
    agreement = _agreement(published, made)
    if not agreement.same_site or min(agreement.b1_cosine, agreement.b2_cosine) < AGREEMENT:
        warnings.warn(
            f"the plane stored in {path} (direction at {agreement.published_site}) is not the one "
            f"that its candidates give by the default methods, which is used (direction at "
            f"{agreement.direction_site}; cosine of b1 {agreement.b1_cosine:.3f}, of b2 "
            f"{agreement.b2_cosine:.3f}).",
            stacklevel=3,  # the caller of Calibration.from_reference
        )
    return made._replace(report={**made.report, **agreement.as_report()})


def compare_with_reference(path: Path | str) -> Agreement:
    """How far a published calibration agrees with what its own candidates give here.

    Raises:
        UserError: as :func:`read_reference`.
    """
    published = read_files(path)
    return _agreement(published, _recomputed(published))


def write_reference(
    path: Path | str,
    *,
    candidates: Candidates,
    direction: GlobalDirection,
    plane: Plane,
    selected: Bool[Tensor, "site"],
    recipe: Recipe,
    spec: CaptureSpec,
) -> None:
    """Write a calibration in the layout that the authors of arXiv 2601.19375 publish.

    The two ``.pt`` files are of ``torch.save`` and so hold a pickle, as that layout has it; what is
    pickled are tensors, text, numbers, tuples, lists and dictionaries, which
    ``torch.load(weights_only=True)`` reads. It has no place for methods, lengths or provenance;
    ``Calibration.save`` keeps them. ``read_reference`` restores sites, steered sites and candidates
    always, direction and plane where they were made by ``MaxMeanCosine()`` and ``PC1()``.

    Args:
        path: the folder; replaced if it is such a folder already.
        candidates: on norm outputs; the module names are those of the sites and the model's name
            (:func:`modules_of_sites`).
        direction: of one of these sites.
        plane: whose basis is written.
        selected: the sites to steer.
        recipe: named where the layout cannot hold what it made.
        spec: names the model, the numbers of prompts and the session.

    Raises:
        UserError: a site on the residual stream, a direction that is of no site, or a folder that
            holds something else.
    """
    site = direction.site
    modules = modules_of_sites(spec.sites, spec.model.name)
    if site is None:
        raise UserError(
            f"the direction of {recipe.choice} is of no single site, and the published "
            "layout names the module that it comes from; use MaxMeanCosine() or AtSite(...)."
        )
    rows, basis = candidates.directions.double(), plane.basis.cpu().double()
    write_files(
        Published(
            modules=modules,
            sites=spec.sites,
            candidates=rows,
            direction_site=site,
            basis=basis,
            in_plane=rows @ basis.T,
            mask=selected,
            model_name=spec.model.name,
            n_layers=spec.model.n_layers,
            n_positive=spec.n_positive,
            n_negative=spec.n_negative,
            dtype="float32",
            session=spec.key[:16],
        ),
        path,
    )


def _recomputed(published: Published) -> Fit:
    """The default methods on the published candidates, with the published selection."""
    spec = CaptureSpec(
        model=ModelIdentity(
            name=published.model_name,
            revision=None,
            fingerprint=None,
            n_layers=published.n_layers,
            d_model=published.candidates.shape[1],
            dtype=published.dtype,
        ),
        dataset_name=f"published ({published.n_positive} + {published.n_negative} prompts)",
        dataset_digest="",
        n_positive=published.n_positive,
        n_negative=published.n_negative,
        tokens_digest="",
        sites=published.sites,
        position=-1,
        versions=(),
    )
    rule = Explicit.of(*(s for s, on in zip(published.sites, published.mask, strict=True) if on))
    recipe = Recipe(rule=rule)
    candidates = _candidates(published)
    # The default methods look at the candidates alone, and activations were not published.
    none = candidates.directions.new_empty(0, *candidates.directions.shape)
    evidence = Evidence(Activations(none, none, replace(spec, n_positive=0, n_negative=0)))
    made = recipe.complete(candidates, evidence)._replace(spec=spec)
    made.selection.table.insert(1, "module", [*published.modules])
    made.selection.table.insert(2, "b1", published.in_plane[:, 0].numpy())
    made.selection.table.insert(3, "b2", published.in_plane[:, 1].numpy())
    return made


def _candidates(published: Published) -> Candidates:
    lengths = published.candidates.norm(dim=-1)
    valid = lengths > 0
    unit = torch.zeros_like(published.candidates)
    unit[valid] = published.candidates[valid] / lengths[valid].unsqueeze(-1)
    if ((lengths[valid] - 1).abs() < UNIT_TOLERANCE).all():
        lengths[valid] = torch.nan
    return Candidates(unit.float(), valid, published.sites, lengths.float())


def _agreement(published: Published, made: Fit) -> Agreement:
    norms = published.basis.norm(dim=-1)
    theirs = published.basis / norms.unsqueeze(-1)
    ours, zero_kept = made.plane.basis.double(), _with_zeros_kept(made).basis.double()
    steered: dict[int, set[bool]] = {}
    for site, on in zip(published.sites, published.mask.tolist(), strict=True):
        steered.setdefault(site.layer, set()).add(on)
    assert made.direction.site is not None
    return Agreement(
        published_site=published.direction_site,
        direction_site=made.direction.site,
        b1_cosine=float(theirs[0] @ ours[0]),
        b2_cosine=float(theirs[1] @ ours[1]),
        b2_cosine_zero_kept=float(theirs[1] @ zero_kept[1]),
        overlap=abs(float(published.basis[0] @ published.basis[1])),
        norm_deviation=float((norms - 1).abs().max()),
        n_modules=len(published.modules),
        n_sites=len({*published.sites}),
        n_steered=int(published.mask.sum()),
        whole_blocks=all(len(kinds) == 1 for kinds in steered.values()),
    )


def _with_zeros_kept(made: Fit) -> Plane:
    """The plane with every candidate in the principal component, excluded sites as zeros."""
    return Plane.from_span(
        made.direction.vector, signed_component(made.candidates.directions.double())
    )
