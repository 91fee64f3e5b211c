"""The parts of an ablation: its variants, configuration, run, result and their tables."""
