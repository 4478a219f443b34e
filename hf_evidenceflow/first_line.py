"""What the user of a recipe sees while torch and transformers are imported, which takes seconds."""

import importlib.util
import os
import sys
from pathlib import Path


def say_loading(script: str) -> None:
    """A line on a terminal if the script is a recipe of this package; nothing in a log, where nobody waits."""
    path = Path(script).resolve()
    recipes = importlib.util.find_spec("hf_evidenceflow.recipes")
    folders = [] if recipes is None else recipes.submodule_search_locations or []
    is_recipe = any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
    if is_recipe and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"{path.stem}: importing torch, transformers and TRL ...", file=sys.stderr, flush=True)
