"""The parts of a sweep: its run, its result and their tables."""
