"""
Counts what the code is made of: lines, docstrings, lengths of functions.

```bash
python benchmarks/code_figures.py                        # the library, by folder, and library with recipes
```

A line counts if it is not blank. Docstring lines are those of `ast.get_docstring`. A function's length is that of its
body without the docstring, nested functions included.
"""

import argparse
import ast
from collections import Counter
from pathlib import Path
from statistics import median, quantiles


ROOT = Path(__file__).parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    library = sorted((ROOT / "hf_evidenceflow").rglob("*.py"))
    recipes = sorted(path for name in ("recipes", "patches") for path in (ROOT / name).rglob("*.py"))
    rooms = Counter(path.relative_to(ROOT / "hf_evidenceflow").parts[0] for path in library)
    print(f"{'':24} {'files':>6} {'lines':>7} {'docstrings':>11}")
    for room in rooms:
        show(room, [path for path in library if path.relative_to(ROOT / "hf_evidenceflow").parts[0] == room])
    show("library", library)
    show("library and recipes", library + recipes)
    lengths = [length for path in library for length in function_lengths(path)]
    print(
        f"functions of the library: {len(lengths)}, median {median(lengths):.0f} lines, "
        f"95th percentile {quantiles(lengths, n=20)[-1]:.0f}"
    )


def show(name: str, paths: list[Path]) -> None:
    lines = sum(count(path.read_text(encoding="utf-8")) for path in paths)
    docs = sum(docstring_lines(path) for path in paths)
    print(f"{name:24} {len(paths):6} {lines:7} {docs / max(lines, 1):11.1%}")


def count(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def docstring_lines(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sum(count(ast.get_docstring(node) or "") for node in ast.walk(tree) if isinstance(node, DOCUMENTED))


def function_lengths(path: Path) -> list[int]:
    text = path.read_text(encoding="utf-8")
    lines, lengths = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[ast.get_docstring(node) is not None :]
            lengths.append(count("\n".join(lines[body[0].lineno - 1 : node.end_lineno])) if body else 0)
    return lengths


if __name__ == "__main__":
    main()
