"""Executes the notebooks; the Chinese ones have the same cells, and get the outputs of the English ones.

```bash
python docs/run_notebooks.py course_word_vectors   # one chapter; without a name, all of them
```
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


FOLDER = Path(__file__).parent / "notebooks"
CHINESE = "_zh"


def execute(path: Path) -> None:
    """Run a notebook and write it, and its Chinese twin if it has one, with the outputs; warnings are left out."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)
    twin_path = path.with_name(f"{path.stem}{CHINESE}.ipynb")
    if not twin_path.exists():
        return
    twin = nbformat.read(twin_path, as_version=4)
    for cell, other in zip(notebook.cells, twin.cells, strict=True):
        if cell.cell_type == "code":
            other.outputs, other.execution_count = cell.outputs, cell.execution_count
    nbformat.write(twin, twin_path)


if __name__ == "__main__":
    notebooks = sorted(path for path in FOLDER.glob("*.ipynb") if not path.stem.endswith(CHINESE))
    for path in notebooks:
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            execute(path)
            print(path.name, flush=True)
