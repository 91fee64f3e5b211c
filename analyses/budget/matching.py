"""At which strengths does steering move the predictions by a given divergence?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

TOLERANCE = 0.02
"""A match is within this share of the budget."""
MAX_STEPS = 20
"""Of the root finder in a bracket: enough to halve it to a millionth."""
AT_ONCE = 4
"""Strengths of the scan that are measured together."""
NEAR = 0.1
"""An extremum between strengths of the scan is looked for where a parabola through three of them
comes within this share of the budget, or beyond it."""
FAR = 3.0
"""How many times its root a divergence's root may count, so that an overflow stays a number."""


class Match(NamedTuple):
    """A strength with the divergence measured there, or (both NaN) why there is none."""

    strength: float
    kl: float
    problem: str = ""


@dataclass(eq=False)
class Curve:
    """Divergence against strength: measured where it is asked for, and nowhere twice.

    Attributes:
        measure: divergences, in nats, at some strengths; those of one call may share work.
        strengths: the scan, from the start of the interval to its end, up or down. Its steps decide
            what is seen: a rise above a budget and back between two neighbours is not.
        circle: whether the last strength is the first one again, a whole turn later.
        measured: what is known so far.
    """

    measure: Callable[[Sequence[float]], Sequence[float]]
    strengths: Sequence[float]
    circle: bool = False
    measured: dict[float, float] = field(default_factory=dict, init=False)

    def at(self, strengths: Sequence[float]) -> list[float]:
        """Divergences; infinite where the predictions are no numbers any more."""
        if unknown := [s for s in dict.fromkeys(strengths) if s not in self.measured]:
            found = self.measure(unknown)
            kept = [math.inf if math.isnan(kl) else float(kl) for kl in found]
            self.measured.update(zip(unknown, kept, strict=True))
        return [self.measured[strength] for strength in strengths]

    def first_match(self, budget: float | int, tolerance: float = TOLERANCE) -> Match:
        """The strength at which the divergence equals ``budget`` for the first time from below.

        The scan stops at the first pair of neighbours of which one is at or below and the next at
        or above the budget; Brent's method (``scipy.optimize.brentq``) refines the strength between
        them. A divergence that starts above the budget, as an absolute angle's may, has to fall
        below it first.

        Args:
            budget: in nats, positive.
            tolerance: relative, of the divergence.

        Returns:
            The match; its problem says so when the divergence stays above or below the budget, only
            falls through it, or leaps over it.
        """
        bracket = self._bracket(budget)
        if bracket is None:
            return Match(math.nan, math.nan, self._no_bracket(budget))
        return self._refined(bracket, budget, tolerance)

    def crossings(self, budget: float | int, tolerance: float = TOLERANCE) -> tuple[Match, ...]:
        """Every strength at which the divergence equals ``budget``, rising, falling or touching it.

        The whole interval is scanned. Where a parabola through three neighbours says that the
        divergence turns near the budget between them, it is measured there too. Each pair of
        neighbours with the budget between them has one strength, refined as in
        :meth:`first_match`; a strength of the scan within the tolerance counts as it is.

        Returns:
            The matches in the order of the scan; where there is none, one whose problem says why:
            the divergence stays above or below the budget, or leaps over it.
        """
        known = [*self.strengths]
        for place in self._turns(budget):
            self.at([place])
            known.append(place)
        known.sort(reverse=self.strengths[0] > self.strengths[-1])
        kls = self.at(known)
        found, leaps = dict[float, Match](), list[Match]()
        for strength, kl in zip(known, kls, strict=True):
            if abs(kl - budget) <= tolerance * budget:
                found[strength] = Match(strength, kl)
        for (before, after), ends in zip(pairwise(known), pairwise(kls), strict=True):
            if before in found or after in found or not min(ends) <= budget <= max(ends):
                continue
            match = self._refined((before, after), budget, tolerance)
            if match.problem:
                leaps.append(match)
            else:
                found[match.strength] = match
        if self.circle and self.strengths[0] in found:  # which the last one is again
            found.pop(self.strengths[-1], None)
        order = sorted(found, reverse=self.strengths[0] > self.strengths[-1])
        if not order:
            return (leaps[0] if leaps else Match(math.nan, math.nan, self._no_bracket(budget)),)
        return tuple(found[strength] for strength in order)

    def _turns(self, budget: float | int) -> list[float]:
        """Where parabolas through three neighbours of the scan turn, near the budget or beyond."""
        first, last = self.strengths[0], self.strengths[-1]
        self.at(self.strengths)
        places = []
        triples = [*zip(self.strengths, self.strengths[1:], self.strengths[2:], strict=False)]
        kls = [self.at(at) for at in triples]
        if self.circle:  # around the place where it is closed
            before = self.strengths[-2]
            kls.append(self.at([before, first, self.strengths[1]]))
            triples.append((before - (last - first), first, self.strengths[1]))
        for at, (left, middle, right) in zip(triples, kls, strict=True):
            is_peak = left <= middle >= right and middle < budget
            is_pit = left >= middle <= right and middle > budget
            if not (is_peak or is_pit) or not all(map(math.isfinite, (left, middle, right))):
                continue
            a, b, _ = np.polyfit([s - at[1] for s in at], [left, middle, right], 2)
            if a == 0:
                continue
            turn, extreme = at[1] - b / (2 * a), middle - b * b / (4 * a)
            if (turn - first) * (last - first) < 0:
                turn += last - first
            beyond = extreme - budget if is_peak else budget - extreme
            if beyond >= -NEAR * budget and turn not in self.strengths:
                places.append(float(turn))
        return places

    def _refined(
        self, bracket: tuple[float, float], budget: float | int, tolerance: float
    ) -> Match:
        """The strength between two that have the budget between their divergences."""

        def excess(strength: float) -> float:
            # A divergence is of second order in a small strength, so its root is nearly linear,
            # and finite where there is no divergence. Zero, which a match is made, ends the search.
            (kl,) = self.at([strength])
            if abs(kl - budget) <= tolerance * budget:
                return 0.0
            return min(math.sqrt(kl / budget), FAR) - 1.0

        found = brentq(excess, *bracket, maxiter=MAX_STEPS, full_output=True, disp=False)
        strength = float(found[0])
        (kl,) = self.at([strength])
        if excess(strength) == 0.0:
            return Match(strength, kl)
        return Match(
            math.nan,
            math.nan,
            f"KL leaps over the budget of {budget:g} nats: none of {MAX_STEPS} steps between the "
            f"strengths {bracket[0]:g} and {bracket[1]:g} comes within {tolerance:.0%}",
        )

    def _scan(self) -> Iterator[tuple[float, float]]:
        """Strengths with their divergences, measured no further than the caller reads."""
        for start in range(0, len(self.strengths), AT_ONCE):
            piece = self.strengths[start : start + AT_ONCE]
            yield from zip(piece, self.at(piece), strict=True)

    def _bracket(self, budget: float | int) -> tuple[float, float] | None:
        for (before, low), (after, high) in pairwise(self._scan()):
            if low <= budget <= high:
                return before, after
        return None

    def _no_bracket(self, budget: float | int) -> str:
        kls = self.at(self.strengths)
        where = f"at {len(kls)} strengths from {self.strengths[0]:g} to {self.strengths[-1]:g}"
        if max(kls) < budget:
            return f"KL is at most {max(kls):.4g} {where}, below the budget of {budget:g} nats"
        if min(kls) > budget:
            return f"KL is at least {min(kls):.4g} {where}, above the budget of {budget:g} nats"
        return f"KL only falls through the budget of {budget:g} nats {where}, and never rises to it"
