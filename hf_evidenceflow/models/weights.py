"""Tells whole weight files from broken ones before anything is built from them."""

import json
import os
from pathlib import Path


def broken_weights(folder: str | os.PathLike) -> str | None:
    """
    Say what is wrong with the safetensors files of a folder, from their headers alone.

    Args:
        folder (`str` or `os.PathLike`):
            Checkpoint, model or adapter folder.

    Returns:
        `str` or `None`: The first file that is cut short, unreadable or missing from a sharded set, with the reason;
        `None` if there is no such file.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError) as error:
            return f"{index.name} cannot be read ({type(error).__name__}: {error})"
        if missing := sorted(shard for shard in shards if not (folder / shard).exists()):
            return f"{missing[0]} is missing, which {index.name} lists"
    for weights in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(weights, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{weights.relative_to(folder)} cannot be opened, it may be cut short ({error})"
    return None
