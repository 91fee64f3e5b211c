"""What is compared with what, by name."""

from __future__ import annotations

ALL, ONLY, LEFT_OUT, RANDOM = KINDS = ("all sites", "this site alone", "left out", "random plane")
CLASSES = ("positive", "negative")
EFFECT_COLUMNS = (
    *("kind", "site", "layer", "stream", "draw", "prompt_class", "effect", "low", "high"),
    *("refusal_score", "opening_mass", "n"),
)
