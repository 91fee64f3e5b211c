"""Doors for other frameworks, a folder each."""
