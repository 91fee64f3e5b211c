"""What a figure calls the score of a behaviour and its two classes of prompts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spoken:
    """What the score and the classes of prompts are called; those of refusal unless told.

    Attributes:
        score: its column.
        unit: of the score, in brackets; nothing where it has none, and no opening mass.
        positive, negative: the prompts of the classes.
    """

    score: str = "refusal_score"
    unit: str = " (nats)"
    positive: str = "harmful prompts"
    negative: str = "harmless prompts"


REFUSAL = Spoken()
