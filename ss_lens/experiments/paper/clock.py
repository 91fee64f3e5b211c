"""The stages of a paper run, what each was planned to take, and how much is left.

What the cells of ``small`` cost on a model of 1.5 B on 2 cores, as planned:

======================  ==========================================================  =======
stage                   cells                                                       minutes
======================  ==========================================================  =======
capture                 192 + 32 prompts; the template variant once more            3
scan on dev             one pass at 8 angles: 7 methods, 14 controls; 10 rules at 4  14
answers on dev          32 per method and try, 16 per control, 32 tokens            14
answers on test         48 per method, 24 per control, 32 tokens, perplexities      30
nulls                   99 planes of each kind, 99 site sets, a pass of 12 prompts  20
capability              80 items for 6 models, where lm-eval is installed           10
======================  ==========================================================  =======
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

STAGES: Mapping[str, float] = {
    "capture and the method's sites": 5,
    "scan of the angles on dev": 14,
    "answers on dev": 14,
    "answers on test": 30,
    "random planes and site sets": 20,
    "capability": 10,
}
"""Stages in their order and the minutes that are planned for each."""
logger = logging.getLogger(__name__)


class Clock:
    """Says at each stage how much is left, by the pace of what was computed so far."""

    def __init__(self) -> None:
        self._spent = self._planned = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        names = [*STAGES]
        place = names.index(name)
        left = sum(STAGES[later] for later in names[place:])
        pace = self._spent / self._planned if self._planned else None
        told = "" if pace is None else f", about {left * pace / 60:.0f} min left"
        logger.info("paper: %s (%d of %d%s)", name, place + 1, len(names), told)
        began = time.monotonic()
        yield
        spent = time.monotonic() - began
        if spent > 0.02 * 60 * STAGES[name]:  # else it was there already
            self._spent, self._planned = self._spent + spent, self._planned + STAGES[name]
