"""Vectors of words from what stands beside them."""
