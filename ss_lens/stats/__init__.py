"""One home for every interval and every test."""
