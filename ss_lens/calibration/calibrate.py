"""Steps 1 to 4 of Selective Steering: from activations to a calibration."""

from __future__ import annotations

from collections.abc import Sequence

from ss_lens.activations.activations import Activations, Evidence
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.directions import DifferenceOfMeans, DirectionMethod
from ss_lens.calibration.global_direction import GlobalChoice, MaxMeanCosine
from ss_lens.calibration.planes import PC1, PlaneMethod
from ss_lens.calibration.recipe import Recipe
from ss_lens.calibration.site_selection import SelectionRule, as_rule
from ss_lens.core.errors import UserError
from ss_lens.models.sites import Stream

CALIBRATION_STREAMS: tuple[Stream, ...] = ("ln1_out", "ln2_out")


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
    return Calibration(*recipe.fit(evidence))
