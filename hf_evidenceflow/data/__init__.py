"""Data sets, text, and token ids."""

from .loading import load_split
from .tokenizer_loading import load_tokenizer


__all__ = ["load_split", "load_tokenizer"]
