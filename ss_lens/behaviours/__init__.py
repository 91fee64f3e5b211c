"""Behaviours: which prompts show one, and how its answers are scored."""
