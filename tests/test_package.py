"""What importing the package does, and what it offers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_evidenceflow
from hf_evidenceflow import patches


def test_every_public_name_can_be_imported():
    for name in hf_evidenceflow.__all__:
        assert getattr(hf_evidenceflow, name) is not None, name
    assert set(hf_evidenceflow.__all__) <= set(dir(hf_evidenceflow))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'HRPOTrainr'"):
        _ = hf_evidenceflow.HRPOTrainr


@pytest.mark.parametrize("package", [hf_evidenceflow, patches])
def test_editors_see_the_names_that_are_loaded_on_first_use(package):
    (block,) = (
        node
        for node in ast.parse(Path(package.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    aliases = [(alias.name, alias.asname, line.module) for line in block.body for alias in line.names]
    assert [name for name, again, _ in aliases if name != again] == []  # else it is no re-export
    assert {name: module for name, _, module in aliases} == package._MODULE_OF


@pytest.mark.slow
def test_importing_loads_no_training_library():
    script = """
        import sys
        import hf_evidenceflow, hf_evidenceflow.patches
        from transformers import AutoConfig
        assert AutoConfig.for_model("thinking_qwen2").thinking_mode == "projection"
        loaded = {"trl", "datasets", "matplotlib", "rich", "pandas", "transformers.trainer"} & set(sys.modules)
        assert not loaded, loaded
    """
    lines = "\n".join(line.strip() for line in script.splitlines())
    result = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
