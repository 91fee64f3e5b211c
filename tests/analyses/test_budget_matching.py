"""Strengths that spend a budget are those of known curves: the first, or all around a circle."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st

from analyses.budget.matching import MAX_STEPS, TOLERANCE, Curve, Match


def curve(function: Callable[[float], float], strengths: Sequence[float]) -> Curve:
    return Curve(lambda some: [function(strength) for strength in strengths_of(some)], strengths)


def strengths_of(some: Sequence[float]) -> list[float]:
    assert len(set(some)) == len(some), "a strength is asked for twice"
    return [*some]


def matched(
    function: Callable[[float], float], strengths: Sequence[float], level: float, tolerance: float
) -> Match:
    return curve(function, strengths).first_match(level, tolerance)


@given(
    scale=st.floats(1e-3, 1e3),
    exponent=st.floats(0.5, 6),
    where=st.floats(0.05, 0.99),
    sign=st.sampled_from([1.0, -1.0]),
)
def test_a_power_is_matched_where_its_inverse_says(
    scale: float, exponent: float, where: float, sign: float
) -> None:
    level = scale * where**exponent
    found = matched(
        lambda s: scale * abs(s) ** exponent, [sign * k / 6 for k in range(7)], level, 1e-3
    )
    assert found.problem == ""
    assert found.kl == pytest.approx(level, rel=1e-3)
    assert found.strength == pytest.approx(sign * where, rel=2.1e-3)


def test_behind_a_bump_the_first_crossing_is_found() -> None:
    def bumps(strength: float) -> float:
        return 2 * math.sin(strength) ** 2  # one at π/4, 3π/4, 5π/4, …

    assert matched(bumps, np.linspace(0, 9, 19).tolist(), 1.0, 1e-6).strength == pytest.approx(
        math.pi / 4, rel=1e-5
    )
    assert matched(bumps, np.linspace(0, -9, 19).tolist(), 1.0, 1e-6).strength == pytest.approx(
        -math.pi / 4, rel=1e-5
    )


def test_a_curve_that_starts_above_is_matched_where_it_comes_back_from_below() -> None:
    found = matched(lambda s: 1 + math.cos(s), np.linspace(0, 6.2, 13).tolist(), 0.5, 1e-6)
    assert found.strength == pytest.approx(4 * math.pi / 3, rel=1e-5)


def test_a_scanned_strength_that_spends_the_budget_is_the_match() -> None:
    assert matched(lambda s: s, [0.0, 1.0, 2.0], 1.0, 1e-6) == Match(1.0, 1.0)
    assert matched(lambda s: s, [1.0, 2.0], 1.0, 1e-6) == Match(1.0, 1.0)
    assert matched(lambda s: s, [0.0, 2.0], 2.0, 1e-6) == Match(2.0, 2.0)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (
            lambda s: 0.2 * s,
            r"KL is at most 0.8 at 5 strengths from 0 to 4, below the budget of 1 nats",
        ),
        (lambda s: 3 + s, r"KL is at least 3 at 5 strengths from 0 to 4, above the budget of 1"),
        (lambda s: 4 - s, r"KL only falls through the budget of 1 nats at 5 strengths from 0 to 4"),
        (
            lambda s: 0.1 if s < 2.3 else 5.0,
            rf"KL leaps over .* 1 nats: none of {MAX_STEPS} steps between the strengths 2 and 3",
        ),
        (lambda s: 0.1 if s < 2.3 else math.nan, r"KL leaps over the budget"),
        (lambda s: math.nan, r"KL is at least inf .* above the budget"),
    ],
)
def test_a_budget_that_is_not_reached_has_no_strength_and_a_reason(
    function: Callable[[float], float], problem: str
) -> None:
    found = matched(function, [0.0, 1.0, 2.0, 3.0, 4.0], 1.0, 0.02)
    assert math.isnan(found.strength)
    assert math.isnan(found.kl)
    assert re.match(problem, found.problem)


def test_an_overflow_behind_the_crossing_does_not_hide_it() -> None:
    found = matched(lambda s: s**2 if s < 2 else math.nan, [0.0, 1.0, 3.0], 2.0, 1e-3)
    assert found.strength == pytest.approx(math.sqrt(2), rel=1e-3)


TURN = tuple(float(angle) for angle in range(0, 361, 15))


def dip(angle: float, of: float = 1.0) -> float:
    """A divergence around the circle, nothing at 0° and ``of`` at 180°."""
    return of * math.sin(math.radians(angle) / 2) ** 2


def two_waves(angle: float) -> float:
    """Two peaks, of 1 at 90° and of 1.5 at 270°, with a pit of 0 between them."""
    return (1.0 if angle < 180 else 1.5) * math.sin(math.radians(angle)) ** 2


def at_all(function: Callable[[float], float], level: float) -> list[float]:
    found = curve(function, TURN).crossings(level, 1e-4)
    for match in found:
        assert match.problem == ""
        assert match.kl == pytest.approx(level, rel=1.1e-4)
    return [match.strength for match in found]


@pytest.mark.parametrize(
    ("function", "level", "angles"),
    [
        (dip, 0.25, [60, 300]),
        (dip, 0.3, [66.4218, 293.5782]),
        (two_waves, 0.75, [60, 120, 225, 315]),
        (two_waves, 1.2, [243.4349, 296.5651]),
        (lambda a: 2 - dip(a), 1.5, [90, 270]),  # an absolute angle: never at the unsteered model
        (lambda a: dip(a + 7, 2.0), 0.5, [53, 293]),
    ],
)
def test_around_the_circle_every_crossing_is_found(
    function: Callable[[float], float], level: float, angles: list[float]
) -> None:
    assert at_all(function, level) == pytest.approx(angles, abs=0.02)


@pytest.mark.parametrize("turn", [TURN, TURN[::-1]], ids=["up", "down"])
@pytest.mark.parametrize(
    ("function", "level", "angles"),
    [
        (lambda a: dip(a + 7, 2.0), 0.001, [350.4374, 355.5626]),
        (lambda a: 2 - dip(a - 5), 1.999, [1.3757, 8.6243]),
        (lambda a: 2 - dip(a), 1.999, [3.6243, 356.3757]),
        (lambda a: 2 - dip(a), 2.0, [0]),  # and not once more at 360°
    ],
)
def test_a_turn_where_the_circle_is_closed_is_seen_from_both_sides(
    function: Callable[[float], float],
    level: float,
    angles: list[float],
    turn: tuple[float, ...],
) -> None:
    around = Curve(lambda some: [function(angle) for angle in some], turn, circle=True)
    found = [match.strength % 360 for match in around.crossings(level, 1e-6)]
    assert sorted(found) == pytest.approx(angles, abs=0.02)


@given(level=st.floats(0.01, 0.99), turned=st.floats(-0.49, 0.49))
def test_both_senses_of_a_bent_circle_are_found(level: float, turned: float) -> None:
    """One sense spends more than the other, as on real models."""

    def bent(angle: float) -> float:
        return dip(angle + math.degrees(turned * math.sin(math.radians(angle))))

    found = at_all(bent, level)
    assert len(found) == 2
    assert found[0] < 180 < found[1]


def test_a_curve_that_touches_the_budget_has_one_strength() -> None:
    """At an angle of the scan, and between two."""
    on_grid = curve(lambda a: dip(a, 0.3), TURN).crossings(0.3, 1e-3)
    assert [match.strength for match in on_grid] == [180]
    between = curve(lambda a: 0.3 * math.cos(math.radians(a - 187.5)) ** 8, TURN)
    assert max(between.at(TURN)) < 0.3 * 0.97
    found = between.crossings(0.3, 0.01)
    assert [match.strength for match in found] == pytest.approx([187.5], abs=0.5)
    pit = curve(lambda a: 0.6 - 0.3 * math.cos(math.radians(a - 187.5)) ** 8, TURN)
    assert [match.strength for match in pit.crossings(0.3, 0.01)] == pytest.approx([187.5], abs=0.5)


def test_a_peak_over_the_budget_between_two_angles_is_crossed_twice() -> None:
    found = at_all(lambda a: 0.3 * math.cos(math.radians(a - 187.5)) ** 8, 0.29)
    assert found == pytest.approx([187.5 - 5.287, 187.5 + 5.287], abs=0.05)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (
            lambda a: dip(a, 0.2),
            "KL is at most 0.2 at 25 strengths from 0 to 360, below the budget",
        ),
        (lambda a: 2 - dip(a), "KL is at least 1 at 25 strengths from 0 to 360, above the budget"),
        (lambda a: 0.1 if a < 97 else 5.0, "KL leaps over the budget of 0.3 nats"),
        (lambda a: math.nan, "KL is at least inf"),
    ],
)
def test_a_circle_without_a_crossing_says_why(
    function: Callable[[float], float], problem: str
) -> None:
    (found,) = curve(function, TURN).crossings(0.3, 0.02)
    assert math.isnan(found.strength)
    assert found.problem.startswith(problem)


def test_a_leap_does_not_hide_another_crossing() -> None:
    found = curve(lambda a: dip(a) if a < 292 else 0.0, TURN).crossings(0.9, 1e-3)
    assert [match.strength for match in found] == pytest.approx([143.13, 216.87], abs=0.1)
    found = curve(lambda a: dip(a) if a < 292 else 0.0, TURN).crossings(0.2, 1e-3)
    assert [match.strength for match in found] == pytest.approx([53.13], abs=0.1)


def test_nothing_is_measured_twice_and_no_further_than_needed() -> None:
    asked: list[float] = []

    def measure(strengths: Sequence[float]) -> list[float]:
        asked.extend(strengths)
        return [strength**2 for strength in strengths]

    known = Curve(measure, [float(s) for s in range(20)])
    first = known.first_match(1.5)
    assert max(asked) == 3  # the scan goes by fours
    again = len(asked)
    assert known.first_match(1.5) == first
    assert len(asked) == again
    assert known.first_match(40.0).strength == pytest.approx(math.sqrt(40), rel=TOLERANCE)
    assert max(asked) == 7
    assert len(set(asked)) == len(asked) <= 8 + 2 * 3
