"""Behaviours: which prompts show one, and how its answers are scored."""

from __future__ import annotations

from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import BEHAVIOURS, load_behaviour
from ss_lens.behaviours.measures import Measures
from ss_lens.behaviours.questions import contrast_of, read_questions
from ss_lens.behaviours.readers import Function, JudgedBy, Pattern, Phrases, RatedColumn
from ss_lens.scoring.behaviours.openings import Choices, Openings, Question

__all__ = [
    "BEHAVIOURS",
    "Behaviour",
    "Choices",
    "Function",
    "JudgedBy",
    "Measures",
    "Openings",
    "Pattern",
    "Phrases",
    "Question",
    "RatedColumn",
    "contrast_of",
    "load_behaviour",
    "read_questions",
]
