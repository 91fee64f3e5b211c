"""Scores: text to numbers, with intervals."""
