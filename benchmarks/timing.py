"""Alternating rounds, medians, and ratios as lines of text and as a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

ROUNDS = 5
Side = Callable[[], object]


def finish(device: torch.device) -> None:
    """Wait for what the device was asked to do: its work is asynchronous."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternating(
    sides: Mapping[str, Side],
    rounds: int = ROUNDS,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Median seconds of each side, the sides taking turns so that drift hits all alike."""
    where = torch.device("cpu") if device is None else device
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name, side in sides.items():
            finish(where)
            start = time.perf_counter()
            side()
            finish(where)
            if round_number > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclass(frozen=True)
class Figure:
    """One measured number; ``goal`` is the most that it should be."""

    what: str
    value: float
    unit: str = ""
    goal: float | None = None
    seconds: float | None = None

    @classmethod
    def ratio(
        cls, what: str, times: Mapping[str, float], over: str, goal: float | None = None
    ) -> Figure:
        """The first side's time over that of the side named ``over``."""
        first = next(iter(times.values()))
        return cls(what, first / times[over], "", goal, first)

    @property
    def number(self) -> str:
        return f"{self.value:.3f}{self.unit and ' ' + self.unit}"

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"  (goal ≤ {self.goal:g})"
        took = "" if self.seconds is None else f"  [{self.seconds:.3g} s]"
        return f"  {self.what:<66} {self.number:>9}{goal}{took}"


def markdown(figures: Iterable[Figure]) -> str:
    """The figures as a table of Markdown."""
    lines = ["| what | measured | goal | seconds |", "|---|---|---|---|"]
    for figure in figures:
        goal = "" if figure.goal is None else f"≤ {figure.goal:g}"
        took = "" if figure.seconds is None else f"{figure.seconds:.3g}"
        lines.append(f"| {figure.what} | {figure.number} | {goal} | {took} |")
    return "\n".join(lines) + "\n"
