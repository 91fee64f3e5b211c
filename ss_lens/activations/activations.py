"""Captured activations, and the evidence that a calibration is decided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor

from ss_lens.activations.spec import CaptureSpec, range_of
from ss_lens.core.checks import check_is, described
from ss_lens.core.errors import UserError
from ss_lens.core.shown import card, table
from ss_lens.models.sites import Site, Stream


@dataclass(frozen=True, eq=False, repr=False)
class Activations:
    """Activations of both classes at the sites of ``spec``, in float32 on the CPU.

    Raises:
        UserError: the tensors do not have the numbers of prompts and sites that ``spec`` names.
    """

    positive: Float[Tensor, "positive_prompt site d_model"]
    negative: Float[Tensor, "negative_prompt site d_model"]
    spec: CaptureSpec

    def __post_init__(self) -> None:
        expected = (self.spec.n_positive, self.spec.n_negative, len(self.spec.sites))
        got = (self.positive.shape[0], self.negative.shape[0], self.positive.shape[1])
        if got != expected or self.negative.shape[1] != expected[2]:
            raise UserError(
                f"activations of {got[0]} + {got[1]} prompts at {got[2]} sites do not match their "
                f"specification ({expected[0]} + {expected[1]} prompts, {expected[2]} sites)."
            )

    def __repr__(self) -> str:
        return f"Activations({self.spec.summary}, d_model={self.positive.shape[-1]})"

    def _repr_html_(self) -> str:
        spec, numbers = self.spec, self.positive.numel() + self.negative.numel()
        facts = {
            "model": f"{spec.model.name} ({spec.model.n_layers} layers, width "
            f"{spec.model.d_model}, {spec.model.dtype})",
            "prompts": f"{spec.n_positive} positive and {spec.n_negative} negative of "
            f"{spec.dataset_name!r}{', paired' if spec.paired else ''}",
            "sites": f"{len(self.sites)}, {range_of(self.sites)}",
            "position": str(spec.position),
            "size": f"{self.positive.element_size() * numbers / 1e6:.1f} MB in memory",
            "key in the store": spec.key[:12],
        }
        norms = [
            [str(site), *(float(h.norm(dim=-1).mean()) for h in self.at(site))]
            for site in (self.sites if len(self.sites) < 5 else self._sample)
        ]
        heading = "mean norms at some sites" if len(self.sites) > len(norms) else "mean norms"
        return card(
            "Activations", facts, table(("site", "positive", "negative"), norms, caption=heading)
        )

    @property
    def _sample(self) -> tuple[Site, ...]:
        last = len(self.sites) - 1
        return tuple(self.sites[i * last // 4] for i in range(5))

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.spec.sites

    def restricted_to(self, streams: Sequence[Stream]) -> Activations:
        """The same activations at the sites of the given streams only.

        Raises:
            UserError: a stream was not captured.
        """
        made = "a list of streams such as ['ln1_out', 'ln2_out']"
        check_is("streams", streams, (list, tuple), made)
        captured = dict.fromkeys(site.stream for site in self.sites)
        if not streams:
            raise UserError(f"no stream was asked for; captured are {', '.join(captured)}.")
        for stream in streams:
            if not isinstance(stream, str) or stream not in captured:
                raise UserError(
                    f"stream {described(stream)} is not among the captured ones "
                    f"({', '.join(captured)}); capture it with streams=(..., {stream!r})."
                )
        keep = [i for i, site in enumerate(self.sites) if site.stream in set(streams)]
        if len(keep) == len(self.sites):
            return self
        made = Activations(
            self.positive[:, keep],
            self.negative[:, keep],
            replace(self.spec, sites=tuple(self.sites[i] for i in keep)),
        )
        _wholes[made] = ref(self.whole)
        return made

    @property
    def whole(self) -> Activations:
        """What these were restricted from, while somebody holds it; otherwise these.

        So what is derived from them can be kept with what outlives them.
        """
        whole = _wholes[self]() if self in _wholes else None
        return self if whole is None else whole

    def at(self, site: Site) -> tuple[Tensor, Tensor]:
        """``(positive, negative)``, each ``[prompt, d_model]``, at one site."""
        check_is("site", site, (Site,), "a site such as ss_lens.Site(12, 'ln1_out')")
        if site not in self.sites:
            raise UserError(f"{site} was not captured; captured are {range_of(self.sites)}.")
        index = self.sites.index(site)
        return self.positive[:, index], self.negative[:, index]


_wholes: WeakKeyDictionary[Activations, ref[Activations]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a calibration may be decided by.

    Attributes:
        train: what directions, plane and selection are fitted on.
        held_out: other prompts of the same model at the same sites, for choices that must not be
            made on ``train``.
        neutral: activations of unrelated prompts (both classes together) that mark the origin.

    Raises:
        UserError: activations of another model, other sites or another token position, or held-out
            prompts that are among those to fit on. Prompts are compared where both sides know
            them; activations stored by earlier versions know only their whole dataset.
    """

    train: Activations
    held_out: Activations | None = None
    neutral: Activations | None = None

    def __post_init__(self) -> None:
        made = "activations from ss_lens.capture(model, dataset)"
        check_is("train", self.train, (Activations,), made)
        for name, part in (("held_out", self.held_out), ("neutral", self.neutral)):
            check_is(name, part, (Activations, type(None)), f"{made}, or None")
        mine = self.train.spec
        for what, other in (("held_out", self.held_out), ("neutral", self.neutral)):
            if other is None:
                continue
            theirs = other.spec
            for name, a, b in (
                ("model", mine.model.fingerprint, theirs.model.fingerprint),
                ("sites", mine.sites, theirs.sites),
                ("position", mine.position, theirs.position),
            ):
                if a != b:
                    raise UserError(
                        f"the {what} activations differ from the calibration's in their {name}; "
                        "capture both alike, on the same model."
                    )
        if self.held_out and self.held_out.spec.dataset_digest == mine.dataset_digest:
            raise UserError(
                "the held_out activations are of the very prompts that are fitted on "
                f"({mine.dataset_name!r}); capture others, for instance the dev part of "
                "dataset.split(...)."
            )
        if self.held_out and (shared := self.held_out.spec.shared_prompts(mine)):
            theirs = self.held_out.spec
            raise UserError(
                f"{len(shared)} of the {theirs.n_prompts} held_out prompts are among those that "
                f"are fitted on, for instance {theirs.label(shared[0])} of {theirs.dataset_name!r} "
                "(counted from 0); remove them from one of the two, or take both from "
                "dataset.split(...)."
            )

    def needed(self, what: Literal["held_out", "neutral"], by: object) -> Activations:
        """The held-out or neutral activations, or an error that names who needs them."""
        found = self.held_out if what == "held_out" else self.neutral
        if found is None:
            raise UserError(
                f"{by} needs {what} activations; capture other prompts and pass them as "
                f"calibrate(..., {what}=...)."
            )
        return found

    def restricted_to(self, streams: Sequence[Stream]) -> Evidence:
        """The same evidence at the sites of the given streams only."""
        others = (part and part.restricted_to(streams) for part in (self.held_out, self.neutral))
        return Evidence(self.train.restricted_to(streams), *others)


def stacked(rows: Float[Tensor, "prompt site d_model"], spec: CaptureSpec) -> Activations:
    """Both classes from one tensor that holds the positive prompts first."""
    positive, negative = torch.split(rows, [spec.n_positive, spec.n_negative])
    return Activations(positive, negative, spec)
