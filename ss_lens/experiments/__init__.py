"""Grids of measurements, computed once each, and what is concluded from them."""
