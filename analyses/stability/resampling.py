"""Prompts drawn again: with replacement, fewer of them, or under labels that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from ss_lens.activations.spec import CaptureSpec
from ss_lens.core.errors import UserError


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each prompt counts as positive and as negative, in each draw.

    The prompts are those of the activations, the positive ones first.
    """

    positive: Int[Tensor, "draw prompt"]
    negative: Int[Tensor, "draw prompt"]

    def __len__(self) -> int:
        return len(self.positive)

    @property
    def weights(self) -> tuple[Float[Tensor, "draw prompt"], Float[Tensor, "draw prompt"]]:
        """``(positive, negative)``, each draw's summing to one: what a class mean multiplies by."""
        positive, negative = (
            counts.double() / counts.sum(dim=1, keepdim=True)
            for counts in (self.positive, self.negative)
        )
        return positive, negative

    def chunks(self, size: int) -> Iterator[Resamples]:
        """The draws in order, ``size`` at a time."""
        for positive, negative in zip(
            self.positive.split(size), self.negative.split(size), strict=True
        ):
            yield Resamples(positive, negative)

    def left_out(self, spec: CaptureSpec) -> Resamples:
        """The prompts that each draw did without, once each and in their true class."""
        unused = self.positive + self.negative == 0
        own = everything(spec)
        return Resamples(own.positive * unused, own.negative * unused)


def everything(spec: CaptureSpec, n_draws: int = 1) -> Resamples:
    """Each prompt once, in its own class, in every draw."""
    return _in_own_class(
        torch.ones(n_draws, spec.n_positive, dtype=torch.long),
        torch.ones(n_draws, spec.n_negative, dtype=torch.long),
    )


def bootstrap(spec: CaptureSpec, n_draws: int, generator: Generator) -> Resamples:
    """Each class with replacement, on its own; partners of a paired dataset go together."""

    def drawn(n: int) -> Tensor:
        return _counts(torch.randint(n, (n_draws, n), generator=generator), n)

    positive = drawn(spec.n_positive)
    return _in_own_class(positive, positive if spec.paired else drawn(spec.n_negative))


def subsample(spec: CaptureSpec, size: int, n_draws: int, generator: Generator) -> Resamples:
    """``size`` prompts of each class without replacement; partners go together.

    Raises:
        UserError: fewer than two, or more than a class has.
    """
    most = min(spec.n_positive, spec.n_negative)
    if not 2 <= size <= most:
        raise UserError(
            f"a subsample of {size} prompts per class cannot be drawn from {spec.n_positive} "
            f"positive and {spec.n_negative} negative ones; use a size from 2 to {most}."
        )

    def drawn(n: int) -> Tensor:
        return _counts(_permutations(n, n_draws, generator)[:, :size], n)

    positive = drawn(spec.n_positive)
    return _in_own_class(positive, positive if spec.paired else drawn(spec.n_negative))


def shuffled(spec: CaptureSpec, n_draws: int, generator: Generator) -> Resamples:
    """Labels permuted over all prompts; in a paired dataset, swapped between partners or not."""
    if spec.paired:
        kept = torch.randint(2, (n_draws, spec.n_positive), generator=generator)
        positive = torch.cat((kept, 1 - kept), dim=1)
    else:
        n = spec.n_positive + spec.n_negative
        positive = _counts(_permutations(n, n_draws, generator)[:, : spec.n_positive], n)
    return Resamples(positive, 1 - positive)


def _in_own_class(
    positive: Int[Tensor, "draw positive_prompt"], negative: Int[Tensor, "draw negative_prompt"]
) -> Resamples:
    return Resamples(
        torch.cat((positive, torch.zeros_like(negative)), dim=1),
        torch.cat((torch.zeros_like(positive), negative), dim=1),
    )


def _counts(picks: Int[Tensor, "draw pick"], n: int) -> Int[Tensor, "draw n"]:
    counts = torch.zeros(len(picks), n, dtype=torch.long)
    return counts.scatter_add_(1, picks, torch.ones_like(picks))


def _permutations(n: int, n_draws: int, generator: Generator) -> Int[Tensor, "draw n"]:
    return torch.rand(n_draws, n, generator=generator, dtype=torch.float64).argsort(dim=1)
