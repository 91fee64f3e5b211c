"""The figures of a run: each module has ``draw(parts)``, which returns its table and its figure."""
