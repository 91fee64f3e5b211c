"""The default calibration over and over on resampled prompts, from their class means alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from analyses.stability.resampling import Resamples, everything
from ss_lens.activations.activations import Activations, Evidence
from ss_lens.activations.spec import CaptureSpec
from ss_lens.calibration.directions import DifferenceOfMeans
from ss_lens.calibration.global_direction import MaxMeanCosine
from ss_lens.calibration.planes import PC1
from ss_lens.calibration.separation import auroc
from ss_lens.geometry.plane import Plane

DRAWS_AT_ONCE = 64


class ClassMeans(NamedTuple):
    """Mean projections of the unit-normalised activations of each class, per draw and site."""

    positive: Float[Tensor, "draw site"]
    negative: Float[Tensor, "draw site"]


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """What was found in each draw.

    Attributes:
        planes: one per draw.
        direction_sites: index of the global direction's site; ``None`` for a random plane.
        agreement: mean cosine similarity over the pairs of candidates; NaN for a random plane.
        means: along the draw's own ``b1``.
        auroc: area under the ROC curve along ``b1`` at the direction's site, of the prompts that
            the draw was fitted on with the labels that it gave them.
        held_out_auroc: the same of the prompts that the draw left out, with their true labels; NaN
            where it left out none of a class.
    """

    planes: tuple[Plane, ...]
    direction_sites: tuple[int | None, ...]
    agreement: Float[Tensor, "draw"]
    means: ClassMeans
    auroc: Float[Tensor, "draw"]
    held_out_auroc: Float[Tensor, "draw"]

    @property
    def selected(self) -> Bool[Tensor, "draw site"]:
        """Where the class means lie on opposite sides of zero, which may be nowhere."""
        return self.means.positive.sign() * self.means.negative.sign() < 0


def recalibrate(
    acts: Activations, resamples: Resamples, advance: Callable[[int], object]
) -> Recalibrated:
    """The default directions, global direction, plane and selection of each draw.

    The first three read nothing but class means, so that a draw needs weights and no copy of its
    prompts. Where :func:`ss_lens.calibrate` raises because no site is selected, the draw is kept.

    Args:
        acts: at the sites to calibrate.
        resamples: the draws.
        advance: called with the number of draws just done.

    Raises:
        UserError: as ``calibrate``, where there is no direction or no plane.
    """
    fits: list[_Fit] = []
    for chunk in resamples.chunks(DRAWS_AT_ONCE):
        sums = ([], [])
        for h in _site_by_site(acts):
            for into, weights in zip(sums, chunk.weights, strict=True):
                into.append(weights @ h)
        positive, negative = (torch.stack(means, dim=1) for means in sums)
        fits += [_fit(p, n, acts.spec) for p, n in zip(positive, negative, strict=True)]
        advance(len(chunk))
    return _read(acts, resamples, fits)


def random_planes(acts: Activations, n_draws: int, generator: Generator) -> Recalibrated:
    """Planes drawn uniformly, and on which sides of their ``b1`` the true classes lie."""
    spans = torch.randn(n_draws, 2, acts.positive.shape[-1], generator=generator)
    fits = [_Fit(Plane.from_span(*span), None, math.nan) for span in spans]
    return _read(acts, everything(acts.spec, n_draws), fits)


def means_along(
    acts: Activations, resamples: Resamples, b1: Float[Tensor, "d_model"]
) -> ClassMeans:
    """Class means of the draws along one and the same direction."""
    along = _along(acts, b1.unsqueeze(0)).squeeze(0)
    return ClassMeans(*(weights @ along for weights in resamples.weights))


class _Fit(NamedTuple):
    plane: Plane
    site: int | None
    agreement: float


def _fit(
    positive: Float[Tensor, "site d_model"],
    negative: Float[Tensor, "site d_model"],
    spec: CaptureSpec,
) -> _Fit:
    """The default methods on class means, which pose as one prompt per class."""
    one_each = replace(spec, n_positive=1, n_negative=1, prompt_digests=())
    means = Evidence(Activations(positive.unsqueeze(0), negative.unsqueeze(0), one_each))
    candidates = DifferenceOfMeans().candidates(means.train)
    direction = MaxMeanCosine().choose(candidates, means)
    assert direction.site is not None
    return _Fit(
        PC1().build(direction, candidates, means).plane,
        spec.sites.index(direction.site),
        float(direction.scores.nanmean()),
    )


def _read(acts: Activations, resamples: Resamples, fits: Sequence[_Fit]) -> Recalibrated:
    """What each draw's prompts, and those that it left out, do along its ``b1``."""
    means: list[ClassMeans] = []
    areas: list[tuple[float, float]] = []
    rest = iter(fits)
    for chunk in resamples.chunks(DRAWS_AT_ONCE):
        part = [next(rest) for _ in range(len(chunk))]
        along = _along(acts, torch.stack([fit.plane.b1 for fit in part]))
        means.append(ClassMeans(*(torch.einsum("dp,dps->ds", w, along) for w in chunk.weights)))
        both = (chunk, chunk.left_out(acts.spec))
        for i, fit in enumerate(part):
            here = None if fit.site is None else along[i, :, fit.site]
            fitted, unseen = (_area(here, drawn.positive[i], drawn.negative[i]) for drawn in both)
            areas.append((fitted, unseen))
    seen, unseen = torch.tensor(areas).unbind(1)
    return Recalibrated(
        planes=tuple(fit.plane for fit in fits),
        direction_sites=tuple(fit.site for fit in fits),
        agreement=torch.tensor([fit.agreement for fit in fits]),
        means=ClassMeans(*(torch.cat(of_class) for of_class in zip(*means, strict=True))),
        auroc=seen,
        held_out_auroc=unseen,
    )


def _along(
    acts: Activations, directions: Float[Tensor, "draw d_model"]
) -> Float[Tensor, "draw prompt site"]:
    """Projections of all unit-normalised activations, those of positive prompts first."""
    columns = [
        directions.double() @ (h / h.norm(dim=-1, keepdim=True)).T for h in _site_by_site(acts)
    ]
    return torch.stack(columns, dim=-1)


def _site_by_site(acts: Activations) -> Iterator[Float[Tensor, "prompt d_model"]]:
    """All prompts in float64 at one site after the other: at once they may not fit in memory."""
    for site in range(len(acts.sites)):
        yield torch.cat((acts.positive[:, site], acts.negative[:, site])).double()


def _area(
    along: Float[Tensor, "prompt"] | None,
    positive: Int[Tensor, "prompt"],
    negative: Int[Tensor, "prompt"],
) -> float:
    if along is None or not positive.any() or not negative.any():
        return math.nan
    classes = (along.repeat_interleave(counts).unsqueeze(1) for counts in (positive, negative))
    return float(auroc(*classes))
