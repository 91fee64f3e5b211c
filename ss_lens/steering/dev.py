"""Dev activations: what they must be before something is decided on them."""

from __future__ import annotations

from collections.abc import Sequence

from ss_lens.activations.activations import Activations
from ss_lens.activations.spec import range_of
from ss_lens.calibration.calibration import Calibration
from ss_lens.core.checks import check_is
from ss_lens.core.errors import UserError
from ss_lens.models.sites import Site


def check_given(calibration: object, dev: object, why: str) -> None:
    """Raise unless these are a calibration and activations; ``why`` says what needs dev."""
    check_is("calibration", calibration, (Calibration,), "a calibration from ss_lens.calibrate")
    made = f"activations of held-out prompts, ss_lens.capture(model, parts.dev): {why}"
    check_is("dev", dev, (Activations,), made)


def check_dev(calibration: Calibration, dev: Activations, sites: Sequence[Site], who: str) -> None:
    """Raise unless ``dev`` are held-out prompts of the same model at their last token.

    Args:
        calibration: what was fitted on other prompts.
        dev: the activations.
        sites: where they are needed.
        who: reads them, such as ``a gate``.

    Raises:
        UserError: a site that was not captured, another model or token, or prompts fitted on.
    """
    mine, theirs = calibration.spec, dev.spec
    for site in sites:
        if site not in theirs.sites:
            raise UserError(
                f"the dev activations were not captured at {site}; captured are "
                f"{range_of(theirs.sites)}. Capture dev with the streams of the calibration."
            )
    if mine.model.fingerprint != theirs.model.fingerprint:
        raise UserError(
            f"the dev activations are of {theirs.model.name!r}, the calibration is of "
            f"{mine.model.name!r}, with other weights. Capture dev on the calibration's model."
        )
    if theirs.position != -1:
        raise UserError(
            f"the dev activations were captured at position {theirs.position!r}, and {who} reads "
            "the last token of the prompt. Capture dev at position -1."
        )
    shared = theirs.shared_prompts(mine)
    if theirs.dataset_digest == mine.dataset_digest or shared:
        count = len(shared) or theirs.n_prompts
        raise UserError(
            f"{count} of the {theirs.n_prompts} dev prompts are those that the calibration was "
            "fitted on, and what is measured on them looks too good; expected others. Take the dev "
            "part of dataset.split(...)."
        )
