"""A judge that answers a question by one of two words, read from their probabilities."""
