"""What importing the package does, and what it offers."""

import subprocess
import sys

import pytest

import hf_evidenceflow


def test_every_public_name_can_be_imported():
    for name in hf_evidenceflow.__all__:
        assert getattr(hf_evidenceflow, name) is not None, name
    assert set(hf_evidenceflow.__all__) <= set(dir(hf_evidenceflow))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'HRPOTrainr'"):
        _ = hf_evidenceflow.HRPOTrainr


@pytest.mark.slow
def test_importing_loads_no_training_library():
    script = """
        import sys
        import hf_evidenceflow, hf_evidenceflow.patches
        from transformers import AutoConfig
        assert AutoConfig.for_model("thinking_qwen2").thinking_mode == "projection"
        loaded = {"trl", "datasets", "matplotlib", "rich", "pandas"} & set(sys.modules)
        assert not loaded, loaded
    """
    lines = "\n".join(line.strip() for line in script.splitlines())
    result = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_importing_the_tasks_and_the_data_loads_no_trainer():
    script = (
        "import sys, hf_evidenceflow.tasks, hf_evidenceflow.data; "
        "loaded = {'trl', 'datasets', 'pandas', 'math_verify'} & set(sys.modules); assert not loaded, loaded"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
