"""One way to move a behaviour at one setting: what is said to the model and what is done to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from analyses.baselines.subject import Subject
from ss_lens import ChatFormat, UserError
from ss_lens.models.chat import DEFAULT_FORMAT, Prompt
from ss_lens.models.templates import Turn
from ss_lens.scoring.divergence import Changed

Inside = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A setting that dev may choose.

    Attributes:
        setting: the system prompt, the number of examples, the strength, as tables show it.
        inside: under which the model runs.
        chat: with the system prompt, where one is given.
        shots: turns that stand before each prompt.
    """

    setting: str
    inside: Inside = nullcontext
    chat: ChatFormat = DEFAULT_FORMAT
    shots: tuple[Turn, ...] = ()

    def prompts(self, texts: Sequence[str]) -> list[Prompt]:
        """What the model reads for each text, without the system prompt."""
        if not self.shots:
            return [*texts]
        return [[*self.shots, {"role": "user", "content": text}] for text in texts]

    def scores(
        self, model: TransformerBridge, subject: Subject, texts: Sequence[str]
    ) -> pd.DataFrame:
        """``score`` and ``opening_mass`` of each text, in one pass."""
        with self.inside():
            return subject.scores(model, self.prompts(texts), self.chat)

    def change(self, texts: Sequence[str]) -> Changed:
        """What to compare with the unsteered model's predictions on the answers to ``texts``."""
        return Changed(self.setting, self.inside, self.prompts(texts), self.chat)


@dataclass(frozen=True, eq=False)
class Way:
    """A way of moving a behaviour, with the settings that dev chooses from.

    Attributes:
        settings: of a way without a dial.
        at: from a strength to its candidate, of a way with one.
        strengths: of the dial, in order; those at which nothing changes are no settings.
        preparation_s: seconds that it took to make, such as a training.
        circle: whether the strengths are angles around the whole circle.

    Raises:
        UserError: neither settings nor a dial, or both.
    """

    settings: tuple[Candidate, ...] = ()
    at: Callable[[float], Candidate] | None = None
    strengths: tuple[float | int, ...] = ()
    preparation_s: float = 0.0
    circle: bool = False

    def __post_init__(self) -> None:
        dial = self.at is not None and len(self.strengths) > 1
        if dial == bool(self.settings) or (self.at is None) != (not self.strengths):
            raise UserError(
                "a way has settings, or a function of the strength with two strengths or more; got "
                f"{len(self.settings)} settings and {len(self.strengths)} strengths."
            )

    @property
    def candidates(self) -> dict[float, Candidate]:
        """By strength; settings without one by their place."""
        if self.at is None:
            return {float(place): made for place, made in enumerate(self.settings)}
        turned = [s for s in self.strengths if not math.isclose(s % 360 if self.circle else s, 0)]
        return {strength: self.at(strength) for strength in turned}
