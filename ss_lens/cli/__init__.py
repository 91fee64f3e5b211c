"""The command line: verbs and the tables that they print, no logic."""
