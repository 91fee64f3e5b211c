"""Per-prompt sites: each prompt is steered where the model is clearest about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ss_lens.activations.activations import Activations
from ss_lens.activations.spec import range_of
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.separation import cohens_d
from ss_lens.core.checks import check_is, check_whole
from ss_lens.core.errors import UserError
from ss_lens.models.identity import ModelIdentity
from ss_lens.models.sites import Site
from ss_lens.steering.dev import check_dev, check_given
from ss_lens.steering.gates import UNIT_TOLERANCE


@dataclass(frozen=True)
class SitesFit:
    """What the prior rests on.

    Attributes:
        model: the model that the dev prompts were captured on.
        dataset_name: of the dev prompts.
        n_positive, n_negative: dev prompts.
    """

    model: ModelIdentity
    dataset_name: str
    n_positive: int
    n_negative: int


@dataclass(frozen=True, eq=False, repr=False)
class PromptSites:
    r"""The ``k`` of a calibration's sites at which each prompt is steered, prompt by prompt.

    With the projection :math:`x_s = h_s \cdot d` of a prompt at site s, the midpoint :math:`m_s` of
    both classes, their common standard deviation :math:`\sigma_s` and their separation
    :math:`D_s = (\bar x^P_s - \bar x^N_s) / \sigma_s`, the weight of a site is

    .. math:: w_s = \left| D_s \, \frac{x_s - m_s}{\sigma_s} \right|.

    For normal projections of equal spread this is the log-likelihood ratio of the two classes in
    nats, without its sign: how clearly the site says which class the prompt is of. :math:`D_s` is
    the prior, alike for all prompts, and the rest is the prompt's own. The ``k`` sites with the
    largest weights are steered, for the whole prompt and its answer; of equal weights the earlier
    site wins.

    h is read at the last token of the prompt, in a pass of its own in which nothing is steered.

    Source: the idea of a prior per layer that the prompt then weighs is that of hybrid layer
    selection (arXiv 2511.03738); the weight here is another.

    Attributes:
        k: how many sites.
        sites: those to choose from, which are all that the calibration steers.
        direction: the unit vector d.
        separation, midpoint, spread: D, m and σ per site, m and σ in units of the activation.
        fit: what they rest on, where :meth:`from_dev` measured them.

    Raises:
        UserError: more sites asked for than there are, a direction that is not of length 1, numbers
            of other sites, or a spread that is not positive.
    """

    k: int
    sites: tuple[Site, ...]
    direction: Float[Tensor, "d_model"]
    separation: Float[Tensor, "site"]
    midpoint: Float[Tensor, "site"]
    spread: Float[Tensor, "site"]
    fit: SitesFit | None = None

    def __post_init__(self) -> None:
        check_whole("k", self.k, at_least=1)
        sites = tuple(self.sites)
        if self.k > len(sites):
            raise UserError(
                f"k={self.k} sites per prompt were asked for, and there are {len(sites)} to choose "
                f"from; expected at most {len(sites)}. Lower k, or steer more sites."
            )
        check_is("direction", self.direction, (Tensor,), "a tensor of length 1 and shape [d_model]")
        length = float(self.direction.double().norm())
        if self.direction.ndim != 1 or not abs(length - 1) <= UNIT_TOLERANCE:
            raise UserError(
                f"the direction of per-prompt sites must be a unit vector; got shape "
                f"{tuple(self.direction.shape)} and length {length:.6g}. Divide it by its length."
            )
        numbers = {name: getattr(self, name) for name in ("separation", "midpoint", "spread")}
        for name, values in numbers.items():
            check_is(name, values, (Tensor,), "a tensor with one number per site")
            if values.shape != (len(sites),) or not values.isfinite().all():
                raise UserError(
                    f"{name} must hold one finite number for each of {len(sites)} sites; got shape "
                    f"{tuple(values.shape)} with {int((~values.isfinite()).sum())} not finite. "
                    "Take PromptSites.from_dev(...), which measures them."
                )
        flat = [site for site, on in zip(sites, (self.spread <= 0).tolist(), strict=True) if on]
        if flat:
            raise UserError(
                f"the projections do not vary at {flat[0]}, so it tells no prompt from another; "
                "expected a positive spread. Leave the site out of those that are steered."
            )
        object.__setattr__(self, "sites", sites)
        for name, values in ({"direction": self.direction} | numbers).items():
            object.__setattr__(self, name, values.detach().float().clone())

    def __repr__(self) -> str:
        said = f"PromptSites: {self.k} of {len(self.sites)} sites, {range_of(self.sites)}"
        if (fit := self.fit) is None:
            return said
        return f"{said} (prior from {fit.n_positive} + {fit.n_negative} dev prompts)"

    @classmethod
    def from_dev(cls, calibration: Calibration, dev: Activations, *, k: int) -> PromptSites:
        """Measure separation, midpoint and spread along the calibration's ``b1`` on dev prompts.

        On the prompts that were fitted on, directions in a wide space separate more than on others,
        and most where they fit worst; dev prompts tell sites apart as they are.

        Args:
            calibration: its steered sites are those to choose from.
            dev: activations of prompts that the calibration was not fitted on.
            k: how many sites each prompt is steered at.

        Raises:
            UserError: no dev activations, those of another model, token or site, or of prompts that
                were fitted on; fewer than three of them, which have no spread within the classes;
                a site without spread; a ``k`` that is no number of these sites.
        """
        check_given(calibration, dev, "the prior of per-prompt sites is measured on a dev set")
        sites = calibration.selected_sites
        check_dev(calibration, dev, sites, "the choice of sites")
        both = [torch.stack([dev.at(site)[i] for site in sites], dim=1) for i in (0, 1)]
        positive, negative = (part.double() @ calibration.plane.b1.double() for part in both)
        n = len(positive) + len(negative)
        if n < 3:
            raise UserError(
                f"{n} dev prompts have no spread within their classes, and the prior of per-prompt "
                "sites needs it; expected at least 3. Capture more."
            )
        means = positive.mean(dim=0), negative.mean(dim=0)
        within = torch.cat((positive - means[0], negative - means[1]))
        spread = (within.square().sum(dim=0) / (n - 2)).sqrt()
        # Where all prompts end in the same tokens, what differs is rounding.
        rounding = torch.finfo(torch.float32).eps * torch.cat((positive, negative)).abs().amax(0)
        spread = torch.where(spread > 8 * rounding, spread, 0.0)
        separation = torch.where(spread > 0, cohens_d(positive, negative), 0.0)
        spec = dev.spec
        fit = SitesFit(spec.model, spec.dataset_name, len(positive), len(negative))
        middle = (means[0] + means[1]) / 2
        return cls(k, sites, calibration.plane.b1, separation, middle, spread, fit)

    @property
    def by_prior(self) -> tuple[Site, ...]:
        """The ``k`` sites with the largest separation: what fixed sites would be."""
        (chosen,) = _largest(self.separation.abs().unsqueeze(0), self.k)
        return tuple(site for site, on in zip(self.sites, chosen.tolist(), strict=True) if on)

    def weights(self, h: Float[Tensor, "row site d_model"]) -> Float[Tensor, "row site"]:
        """The weight of each site for each prompt, from activations in the order of ``sites``."""
        x = h.float() @ self.direction.to(h.device)
        d, m, spread = (v.to(h.device) for v in (self.separation, self.midpoint, self.spread))
        return (d * (x - m) / spread).abs()

    def chosen(self, weights: Float[Tensor, "row site"]) -> Bool[Tensor, "row site"]:
        """On at the ``k`` largest weights of each row."""
        return _largest(weights, self.k)

    def check_fits(self, calibration: Calibration) -> None:
        """Raise a :class:`UserError` unless these are the sites and the model of a calibration."""
        mine, theirs = set(self.sites), set(calibration.selected_sites)
        if mine != theirs:
            raise UserError(
                f"the sites to choose from are {len(mine)} ({range_of(sorted(mine))}), and the "
                f"calibration steers {len(theirs)} ({range_of(sorted(theirs))}); expected the same "
                "ones. Fit them on this calibration with PromptSites.from_dev(...)."
            )
        model, width = calibration.spec.model, len(self.direction)
        known = None if self.fit is None else self.fit.model
        if width != model.d_model or (known and known.fingerprint != model.fingerprint):
            name = "a model" if known is None else repr(known.name)
            raise UserError(
                f"the per-prompt sites were fitted on {name} of width {width}, the calibration on "
                f"{model.name!r} of width {model.d_model}, or other weights of it; expected one "
                "model. Fit them on this one with PromptSites.from_dev(...)."
            )


def check_prompt_sites(sites: object) -> None:
    """Raise unless ``sites`` are per-prompt sites or ``None``."""
    made = "per-prompt sites from ss_lens.PromptSites.from_dev(...), or None"
    check_is("sites", sites, (PromptSites, type(None)), made)


def _largest(values: Float[Tensor, "row site"], k: int) -> Bool[Tensor, "row site"]:
    """On at the ``k`` largest values of each row, of equal ones the first."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order, True)
