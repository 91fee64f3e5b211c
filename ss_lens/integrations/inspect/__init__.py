"""A steered model as a model of Inspect (https://inspect.aisi.org.uk)."""
