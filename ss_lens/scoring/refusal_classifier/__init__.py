"""Whether an answer refuses, by a logistic regression over families of phrases."""
