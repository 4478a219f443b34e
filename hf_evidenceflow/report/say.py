"""Lines for the terminal."""

import os


def say(text: str) -> None:
    """Print a line at once, beside a progress bar; only the first of several processes does."""
    from tqdm.auto import tqdm

    if os.environ.get("RANK", "0") == "0":
        tqdm.write(text)
