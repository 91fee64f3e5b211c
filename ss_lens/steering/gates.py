"""A gate: a prompt is steered only where its projection at one site, at its end, is large."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.activations import Activations
from ss_lens.activations.spec import range_of
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.separation import auroc
from ss_lens.core.checks import check_is
from ss_lens.core.errors import UserError
from ss_lens.models.identity import ModelIdentity
from ss_lens.models.loading.fingerprint import identify, is_identified_by
from ss_lens.models.sites import Site
from ss_lens.steering.dev import check_dev, check_given

UNIT_TOLERANCE = 1e-4
LEAST_OPENED, LEAST_AUC = 0.5, 0.8
"""A gate that opens for fewer positive dev prompts, or ranks classes worse, is warned of."""


@dataclass(frozen=True)
class GateFit:
    """What a threshold rests on.

    Attributes:
        model: the model that the dev prompts were captured on.
        dataset_name: of the dev prompts.
        false_positive_rate: at most so often a new prompt of the negative class opens the gate.
        n_positive, n_negative: dev prompts.
        opened_positive, opened_negative: how many of them open the gate.
        auc: how often a positive dev prompt projects higher than a negative one.
    """

    model: ModelIdentity
    dataset_name: str
    false_positive_rate: float
    n_positive: int
    n_negative: int
    opened_positive: int
    opened_negative: int
    auc: float | int


@dataclass(frozen=True, eq=False, repr=False)
class Gate:
    r"""Opens for a prompt whose activation h at ``site`` has :math:`h \cdot d` above a threshold.

    h is read at the last token of the prompt, before any edit there, and the decision holds for the
    whole prompt and its answer.

    Attributes:
        site: where it reads.
        direction: the unit vector d.
        threshold: in units of the activation.
        fit: what the threshold rests on, where :meth:`from_dev` set it.

    Raises:
        UserError: a direction that is not of length 1, or a threshold that is no number.
    """

    site: Site
    direction: Float[Tensor, "d_model"]
    threshold: float
    fit: GateFit | None = None

    def __post_init__(self) -> None:
        check_is("site", self.site, (Site,), "a site such as ss_lens.Site(12, 'ln1_out')")
        check_is("direction", self.direction, (Tensor,), "a tensor of length 1 and shape [d_model]")
        length = float(self.direction.double().norm())
        if self.direction.ndim != 1 or not abs(length - 1) <= UNIT_TOLERANCE:
            raise UserError(
                f"the direction of a gate must be a unit vector; got shape "
                f"{tuple(self.direction.shape)} and length {length:.6g}. Divide it by its length."
            )
        check_is("threshold", self.threshold, (Real,), "a number in units of the activation")
        if math.isnan(self.threshold):
            raise UserError(
                "the threshold of a gate must be a number; got nan, which nothing exceeds. Take "
                "Gate.from_dev(...), which sets it at a stated false-positive rate."
            )
        object.__setattr__(self, "direction", self.direction.detach().float().clone())
        object.__setattr__(self, "threshold", float(self.threshold))

    def __repr__(self) -> str:
        said = f"Gate at {self.site}, open above {self.threshold:.4g}"
        if (fit := self.fit) is None:
            return said
        return (
            f"{said} (false-positive rate at most {fit.false_positive_rate:g}; on dev open for "
            f"{fit.opened_positive} of {fit.n_positive} positive and {fit.opened_negative} of "
            f"{fit.n_negative} negative prompts)"
        )

    @classmethod
    def from_dev(
        cls,
        calibration: Calibration,
        dev: Activations,
        *,
        false_positive_rate: float | int,
        site: Site | None = None,
    ) -> Gate:
        r"""Set the threshold on dev prompts, at a false-positive rate :math:`\alpha`.

        The direction is the calibration's candidate at ``site``. The threshold is the
        :math:`\lfloor \alpha (n + 1) \rfloor`-th largest projection of the n negative dev prompts:
        a further prompt drawn like them exceeds it with probability at most :math:`\alpha`
        (split conformal prediction; Vovk et al. 2005). That needs :math:`n \ge 1/\alpha - 1`.

        Args:
            calibration: plane and sites that the gate is for.
            dev: activations of prompts that the calibration was not fitted on.
            false_positive_rate: above 0 and below 1.
            site: default: the first site that the calibration steers. A later one serves only with
                ``positions=GeneratedOnly()``: elsewhere the edit would begin before the decision.

        Raises:
            UserError: no dev activations, those of another model, of another token or of prompts
                that were fitted on; too few negative ones for the rate; a site that the
                calibration or the dev activations lack.

        Warns:
            UserWarning: on dev it opens for fewer than half of the positive prompts, or its AUC is
                below 0.8, so that it would leave alone much of what is to be steered.
        """
        check_given(calibration, dev, "the threshold of a gate is set on a dev set")
        check_is("site", site, (Site, type(None)), "a site such as Site(12, 'ln1_out'), or None")
        chosen = calibration.selected_sites[0] if site is None else site
        _check_direction(calibration, chosen)
        check_dev(calibration, dev, [chosen], "a gate")
        direction = calibration.directions[calibration.sites.index(chosen)]
        positive, negative = (part @ direction for part in dev.at(chosen))
        threshold = _threshold(negative, false_positive_rate)
        fit = GateFit(
            model=dev.spec.model,
            dataset_name=dev.spec.dataset_name,
            false_positive_rate=float(false_positive_rate),
            n_positive=len(positive),
            n_negative=len(negative),
            opened_positive=int((positive > threshold).sum()),
            opened_negative=int((negative > threshold).sum()),
            auc=float(auroc(positive.unsqueeze(1), negative.unsqueeze(1))),
        )
        _warn_where_apart_too_little(chosen, fit)
        return cls(chosen, direction, threshold, fit)

    def check_fits(self, model: TransformerBridge) -> None:
        """Raise a :class:`UserError` unless the gate can read this model."""
        width, theirs = len(self.direction), identify(model)
        if width != theirs.d_model or self.site.hook_name not in model.hook_dict:
            raise UserError(
                f"the gate reads width {width} at {self.site}; the model {theirs.name!r} has "
                f"{theirs.n_layers} layers of width {theirs.d_model}, or lacks that stream. Fit a "
                "gate on this model with Gate.from_dev(...)."
            )
        fitted = None if self.fit is None else self.fit.model.fingerprint
        if fitted is not None and not is_identified_by(model, fitted):
            assert self.fit is not None
            raise UserError(
                f"the gate was fitted on {self.fit.model.name!r} (weights {fitted[:12]}), this is "
                f"{theirs.name!r} (weights {str(theirs.fingerprint)[:12]}). Fit it on this model "
                "with Gate.from_dev(...)."
            )


def check_gate(when: object) -> None:
    """Raise unless ``when`` is a gate or ``None``."""
    check_is("when", when, (Gate, type(None)), "a gate from ss_lens.Gate.from_dev(...), or None")


def _check_direction(calibration: Calibration, site: Site) -> None:
    if site not in calibration.sites or site in calibration.candidates.excluded:
        why = "found no direction" if site in calibration.sites else "has no site"
        raise UserError(
            f"the calibration {why} at {site}, so a gate has no direction there; it has "
            f"{range_of(calibration.sites)}. Choose a site that has one, and steer from there on."
        )


def _warn_where_apart_too_little(site: Site, fit: GateFit) -> None:
    share = fit.opened_positive / fit.n_positive
    if share >= LEAST_OPENED and fit.auc >= LEAST_AUC:
        return
    warnings.warn(
        f"the gate at {site} separates the classes badly: on dev it opens for "
        f"{fit.opened_positive} of {fit.n_positive} positive prompts ({share:.0%}) at a "
        f"false-positive rate of {fit.false_positive_rate:g}, with an AUC of {fit.auc:.2f}; "
        f"expected at least {LEAST_OPENED:.0%} and {LEAST_AUC:g}. Choose another site=, steer from "
        "a later site on, or state a higher rate.",
        stacklevel=3,
    )


def check_rate(rate: float | int, n: int) -> None:
    """Raise unless ``n`` negative dev prompts can state the false-positive rate."""
    check_is("false_positive_rate", rate, (Real,), "a share such as 0.05")
    if not 0 < rate < 1:
        raise UserError(
            f"false_positive_rate must lie between 0 and 1; got {rate}. Write 0.05 for 5 %."
        )
    if _rank(rate, n) < 1:
        raise UserError(
            f"{n} negative dev prompts cannot state a false-positive rate of {rate:g}; expected at "
            f"least {math.ceil(round(1 / rate - 1, 9))}. Capture more, or state a rate of at least "
            f"{math.ceil(1000 / (n + 1)) / 1000:g}."
        )


def _threshold(negative: Float[Tensor, "prompt"], rate: float | int) -> float:
    """The projection that at most ``rate`` of further prompts exceed."""
    check_rate(rate, len(negative))
    rank = _rank(rate, len(negative))
    return float(torch.sort(negative, descending=True).values[rank - 1])


def _rank(rate: float | int, n: int) -> int:
    return math.floor(round(rate * (n + 1), 9))
