"""Where things lie in the checkout."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
HELPERS = ROOT / "tests" / "helpers"
RECIPES = ROOT / "recipes"
