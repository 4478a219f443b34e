"""Executes the course's notebooks; the Chinese ones have the same cells, and get the outputs of the English ones.

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
    """Run a notebook and write it, and its Chinese twin, with the outputs; warnings are left out."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    twin_path = path.with_name(f"{path.stem}{CHINESE}.ipynb")
    twin = nbformat.read(twin_path, as_version=4)
    for cell, other in zip(notebook.cells, twin.cells, strict=True):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            other.outputs, other.execution_count = cell.outputs, cell.execution_count
    nbformat.write(notebook, path)
    nbformat.write(twin, twin_path)


if __name__ == "__main__":
    chapters = sorted(path for path in FOLDER.glob("course_*.ipynb") if not path.stem.endswith(CHINESE))
    for path in chapters:
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            execute(path)
            print(path.name, flush=True)
