"""The notebooks run, and are committed with the outputs of a whole run."""

import ast
import importlib

import nbformat
import pytest
from repository import ROOT


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem.startswith("course_")]
EXECUTED = [path for path in CHAPTERS if path.stem in ("course_word_vectors", "course_scaling_laws")]
CHINESE = [path for path in NOTEBOOKS if path.stem.endswith("_zh")]


def name_of(path):
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_holds_the_outputs_of_one_whole_run(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("path", CHINESE, ids=name_of)
def test_a_chapter_has_the_same_cells_and_outputs_in_chinese(path):
    chinese, english = (
        nbformat.read(each, as_version=4).cells
        for each in (path, path.with_name(path.name.replace("_zh.ipynb", ".ipynb")))
    )
    assert [cell.cell_type for cell in chinese] == [cell.cell_type for cell in english]
    for cell, twin in zip(chinese, english):
        if cell.cell_type == "code":
            assert (cell.source, cell.outputs) == (twin.source, twin.outputs)
        else:
            assert cell.source != twin.source


@pytest.mark.parametrize("path", [path for path in CHAPTERS if path not in CHINESE], ids=name_of)
def test_what_a_chapter_imports_from_the_package_exists(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for cell in cells for node in ast.parse(cell.source).body if isinstance(node, ast.ImportFrom)]
    for node in nodes:
        module = importlib.import_module(node.module)
        for name in node.names:
            if not hasattr(module, name.name):
                importlib.import_module(f"{node.module}.{name.name}")


# The recipes that the other chapters run have slow tests of their own
RUN = [path for path in NOTEBOOKS if path not in CHAPTERS or path in EXECUTED]
# What a notebook does often is done a few times here
SMALLER = {
    "look_inside": {"train=2000": "train=96", "range(150)": "range(3)"},
    "train_hrpo": {
        "train=2000, test=100": "train=96, test=4",
        "max_steps=300": "max_steps=3",
        "max_steps=30,": "max_steps=6,",
        "per_device_train_batch_size=64": "per_device_train_batch_size=16",
    },
    "course_word_vectors": {"generate_corpus(1500)": "generate_corpus(300)", "epochs=40": "epochs=3"},
    "course_scaling_laws": {"resamples=40": "resamples=2"},
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all notebooks, as what they import takes seconds; its client."""
    from nbclient import NotebookClient

    folder = str(tmp_path_factory.mktemp("notebooks"))
    client = NotebookClient(nbformat.v4.new_notebook(), resources={"metadata": {"path": folder}})
    with client.setup_kernel():
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_a_notebook_runs(path, kernel):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for often, few in SMALLER[path.stem].items():
        assert any(often in cell.source for cell in code), often
        for cell in code:
            cell.source = cell.source.replace(often, few)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = NotebookClient(notebook, timeout=600, km=kernel.km)
    client.kc = kernel.kc
    client.execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
