"""Prompts: two classes of them, embedded or read from files."""
