"""Techniques of the language-model course, written by hand where no library has them."""
