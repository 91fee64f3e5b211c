"""A calibration: the direction, the plane and the sites to steer, and how they are fitted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.activations import Activations, Evidence
from ss_lens.activations.site_map import site_map
from ss_lens.activations.spec import CaptureSpec, range_of
from ss_lens.calibration import hub
from ss_lens.calibration.candidates import UNIT_TOLERANCE, Candidates
from ss_lens.calibration.dictionary import Dictionary
from ss_lens.calibration.directions import DifferenceOfMeans, DirectionMethod
from ss_lens.calibration.global_direction import GlobalChoice, GlobalDirection, MaxMeanCosine
from ss_lens.calibration.planes import PC1, PlaneMethod
from ss_lens.calibration.published.reference import read_reference, write_reference
from ss_lens.calibration.recipe import Fit, Recipe
from ss_lens.calibration.selection import Selection, SelectionRule
from ss_lens.calibration.site_selection import as_rule
from ss_lens.calibration.stored import read_calibration, write_calibration
from ss_lens.core.checks import check_flag, check_is, check_path
from ss_lens.core.errors import UserError
from ss_lens.core.shown import card, in_lines, listed
from ss_lens.geometry.plane import Plane
from ss_lens.models.loading.fingerprint import identify, is_identified_by
from ss_lens.models.sites import Site, Stream

CALIBRATION_STREAMS: tuple[Stream, ...] = ("ln1_out", "ln2_out")


@dataclass(frozen=True, eq=False, repr=False)
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

    Raises:
        UserError: the parts are of other sites than ``spec``, or the direction is not the candidate
            of its site.
    """

    candidates: Candidates
    direction: GlobalDirection
    plane: Plane
    report: dict[str, float]
    selection: Selection
    recipe: Recipe
    spec: CaptureSpec

    def __post_init__(self) -> None:
        sites = self.spec.sites
        named = self.selection.table["site"].tolist()
        if self.candidates.sites != sites or named != [str(site) for site in sites]:
            raise UserError(
                "candidates and selection of a calibration must be of the sites of its spec, in "
                f"their order; got {named[:3]} … beside {[str(s) for s in sites[:3]]} …. Calibrate "
                "again."
            )
        site, length = self.direction.site, float(self.direction.vector.double().norm())
        if abs(length - 1) > UNIT_TOLERANCE:
            raise UserError(
                f"the direction of a calibration must have length 1; got {length:.6g}. Calibrate "
                "again."
            )
        if site is None:
            return
        own = self.directions[sites.index(site)] if site in sites else None
        if own is None or not torch.allclose(own, self.direction.vector, rtol=0, atol=1e-5):
            raise UserError(
                f"the direction of a calibration must be the candidate of its site; got another at "
                f"{site}. Calibrate again."
            )

    def __repr__(self) -> str:
        """What was made of what, in a few lines; the attributes hold the numbers."""
        return in_lines(self._title, self._facts)

    def _repr_html_(self) -> str:
        """The same for notebooks, with a map of the sites."""
        picture = site_map(
            self.sites,
            filled=self.selected_sites,
            ring=self.direction_site,
            crossed=self.candidates.excluded,
        )
        return card(self._title, self._facts, picture)

    @property
    def _title(self) -> str:
        model = self.spec.model
        return (
            f"Calibration on {model.name!r} ({model.n_layers} layers, width {model.d_model}, "
            f"{model.dtype})"
        )

    @property
    def _facts(self) -> dict[str, str]:
        spec, recipe, chosen = self.spec, self.recipe, self.selected_sites
        return {
            "prompts": f"{spec.dataset_name!r}, {spec.n_positive} positive and {spec.n_negative} "
            f"negative, at position {spec.position}",
            "direction": f"{self.direction_site or 'of no single site'}, by {recipe.direction!r} "
            f"and {recipe.choice!r}",
            "plane": repr(recipe.plane),
            "steers": f"{len(chosen)} of {len(self.sites)} sites, {range_of(chosen)}, by "
            f"{recipe.rule!r}",
            "excluded": listed(self.candidates.excluded) or "no site",
        }

    @property
    def _fit(self) -> Fit:
        return Fit(
            self.candidates,
            self.direction,
            self.plane,
            self.report,
            self.selection,
            self.recipe,
            self.spec,
        )

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

    def check_fits(
        self, model: TransformerBridge, *, remedy: str = "Calibrate again on this model."
    ) -> None:
        """Raise a :class:`UserError` unless this calibration was made on exactly this model.

        A calibration whose publication names no weights is checked for its shape alone.

        Args:
            model: what it is to be used on.
            remedy: what to do otherwise, as a sentence.
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
        elif not is_identified_by(model, mine.fingerprint):
            problem = (
                f"was made on {mine.name!r} (weights {mine.fingerprint[:12]}), this is "
                f"{theirs.name!r} (weights {str(theirs.fingerprint)[:12]})"
            )
        else:
            return
        raise UserError(f"the calibration {problem}. {remedy}")

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write ``folder``, atomically: safetensors for the tensors, JSON for the rest.

        Where the folder holds this very calibration already, it stays.

        Args:
            folder: where to; created with its parents.
            overwrite: replace another calibration that the folder holds.

        Raises:
            UserError: the folder holds another calibration, or something else.
        """
        check_path("folder", folder)
        check_flag("overwrite", overwrite)
        write_calibration(Path(folder), self._fit, overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: absent, damaged, edited, or of another format.
        """
        check_path("folder", folder)
        return cls(*read_calibration(Path(folder)))

    def published(self) -> Calibration:
        """The same for others to read: models and files by their names, without their folders.

        A registered name and an id on the Hub stay. A model that was loaded from a folder or a file
        is named by the last part of its path, and known by its fingerprint.
        """
        recipe = self.recipe
        if isinstance(recipe.direction, Dictionary):
            recipe = replace(recipe, direction=recipe.direction.published())
        return replace(self, recipe=recipe, spec=self.spec.published())

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload this calibration to the Hugging Face Hub, with a card that holds its numbers.

        The files are those of ``published().save(...)``, which hold no path of this machine. A
        token is taken from where the Hub client keeps it (``hf auth login`` or ``HF_TOKEN``).

        Args:
            repo_id: ``owner/name``; made where it does not exist. Where it holds a calibration,
                this one is a new commit.
            private: make a new repository private.

        Returns:
            The address of the commit.

        Raises:
            UserError: no network, no token that may write there, or a repository that holds
                something else.
        """
        check_flag("private", private)
        shown = self.published()
        return hub.push(shown._fit, shown._facts, shown.save, repo_id, private=private)

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None) -> Calibration:
        """Load what :meth:`push_to_hub` uploaded; without a network, from the Hub's cache.

        Args:
            repo_id: ``owner/name``.
            revision: a commit, branch or tag.

        Raises:
            UserError: no such repository or revision, no network, or a damaged calibration.
        """
        check_is("revision", revision, (str, type(None)), "a commit, branch or tag, or None")
        return cls(*read_calibration(hub.pull(repo_id, revision)))

    @classmethod
    def from_reference(cls, folder: Path | str) -> Calibration:
        """A calibration that the authors of arXiv 2601.19375 published, recomputed.

        Everything is computed from its candidates; see :mod:`ss_lens.calibration.published`.
        """
        check_path("folder", folder)
        return cls(*read_reference(folder))

    def to_reference(self, folder: Path | str) -> None:
        """Write the published layout; see :mod:`ss_lens.calibration.published`."""
        check_path("folder", folder)
        write_reference(
            folder,
            candidates=self.candidates,
            direction=self.direction,
            plane=self.plane,
            selected=self.selected,
            recipe=self.recipe,
            spec=self.spec,
        )


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
        direction: how a site's candidate is found; see :mod:`ss_lens.calibration.directions`.
        choice: how the global direction is chosen; see :mod:`ss_lens.calibration.global_direction`.
        plane: how the plane is completed; see :mod:`ss_lens.calibration.planes`.
        rule: which sites to steer; see :mod:`ss_lens.calibration.site_selection`. ``"site"`` is the
            paper's, ``"block"`` the published code's, ``"uniform"`` every site.
        held_out: other prompts, for choices that must not be made on ``acts``.
        neutral: unrelated prompts, for ``Discriminative(centred=True)``.

    Raises:
        UserError: an argument of another type, streams of different kinds, no direction anywhere,
            no site selected, or a method without the activations that it needs.

    Warns:
        UserWarning: a class of one prompt.
    """
    captured = "activations from ss_lens.capture(model, dataset)"
    check_is("acts", acts, (Activations,), captured)
    for name, other in (("held_out", held_out), ("neutral", neutral)):
        check_is(name, other, (Activations, type(None)), f"{captured}, or None")
    for name, method, kinds, example in (
        ("direction", direction, get_args(DirectionMethod), "DifferenceOfMeans()"),
        ("choice", choice, get_args(GlobalChoice), "MaxMeanCosine()"),
        ("plane", plane, get_args(PlaneMethod), "PC1()"),
    ):
        check_is(name, method, (*kinds, type(None)), f"a method such as {example}, or None")
    selection = as_rule(rule)
    check_is("streams", streams, (list, tuple), "a list of streams such as ['ln1_out', 'ln2_out']")
    check_streams(streams)
    evidence = Evidence(acts, held_out, neutral).restricted_to(streams)
    acts = evidence.train
    if 1 in (counts := (len(acts.positive), len(acts.negative))):
        warnings.warn(
            f"the calibration rests on {counts[0]} + {counts[1]} prompts, so its directions hold "
            "all that sets single prompts apart, their topic and length as well; expected tens per "
            "class. Capture more prompts.",
            stacklevel=2,
        )
    recipe = Recipe(
        direction or DifferenceOfMeans(), choice or MaxMeanCosine(), plane or PC1(), selection
    )
    # A tensor made in inference mode could carry no gradient later.
    with torch.inference_mode(False), torch.no_grad():
        return Calibration(*recipe.fit(evidence))


def check_streams(streams: Sequence[Stream]) -> None:
    """Raise a :class:`UserError` where streams of different kinds would be mixed."""
    if len({Site(0, stream).is_norm_output for stream in streams}) > 1:
        raise UserError(
            f"streams {', '.join(streams)} mix norm outputs with residual streams, whose scales "
            "differ; calibrate them separately."
        )
