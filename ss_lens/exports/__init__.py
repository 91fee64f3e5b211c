"""A steered model as files that other programs run without hooks."""
