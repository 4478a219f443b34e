"""Faster generation: speculative decoding and paged caches."""
