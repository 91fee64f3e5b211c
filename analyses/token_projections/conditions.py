"""How the model runs, by name."""

from __future__ import annotations

UNSTEERED, STEERED = CONDITIONS = ("unsteered", "steered")
