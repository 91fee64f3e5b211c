"""Doors for other frameworks and servers."""
