"""What everything else may use and nothing of a model: errors, checks, files, values as text."""
