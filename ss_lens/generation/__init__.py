"""Text of a model, steered or not, one angle or many at a time."""
