"""Hooks: what is edited, where, at which tokens, and a record of it."""
