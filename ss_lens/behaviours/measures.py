"""What the numbers of a behaviour are called in tables, and how they are spoken of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Sense = Literal["weakened", "strengthened"]
PromptClass = Literal["positive", "negative"]


@dataclass(frozen=True)
class Measures:
    """The columns by which a behaviour is followed; those of refusal unless told otherwise.

    Attributes:
        behaviour: its name.
        score: what angles are chosen by; the log-odds of openings or choices, or the mean of what
            answers score.
        mass: the probability of either kind of opening; ``None`` for a score of answers.
        shown: whether an answer shows the behaviour. Where no reader of answers is given, an
            answer counts as shown where its score is above 0.
        reads: whether ``shown`` comes of the answers, and not of the score.
    """

    behaviour: str = "refusal"
    score: str = "refusal_score"
    mass: str | None = "opening_mass"
    shown: str = "refused"
    reads: bool = True

    @property
    def is_refusal(self) -> bool:
        return self.score == "refusal_score" and self.shown == "refused"

    @property
    def rate(self) -> str:
        """The stem of the rates in tables by angle: ``refusal_positive``, ``shown_positive``."""
        return "refusal" if self.shown == "refused" else "shown"

    @property
    def heading(self) -> str:
        """Of the score, as tables and figures print it."""
        unit = " (nats)" if self.mass is not None else ""
        return "refusal score (nats)" if self.is_refusal else f"{self.behaviour} score{unit}"

    @property
    def words(self) -> dict[PromptClass, str]:
        """How the classes of prompts are called."""
        if self.is_refusal:
            return {"positive": "harmful", "negative": "harmless"}
        return {"positive": "positive", "negative": "negative"}

    def class_of(self, sense: Sense) -> PromptClass:
        """On whose prompts a sense of turning is looked for.

        Refusal of harmful prompts is followed in both senses, as the paper does. Another behaviour
        is weakened where it is there, and strengthened where it is not.
        """
        return "positive" if self.is_refusal or sense == "weakened" else "negative"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


REFUSAL = Measures()
