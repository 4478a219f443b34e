"""Loads saved models with their own code in a process that can't import the package."""

import subprocess
import sys
import textwrap


_HEAD = """
import sys
sys.modules["hf_evidenceflow"] = None  # cannot be imported
import torch
torch.set_num_threads(1)  # as in the test's process: sums round otherwise with more
"""


def run_without_package(script: str, folder) -> None:
    """Run a script, which leaves a `model` behind, in a folder; its asserts fail the test."""
    tail = '\nprint("loaded", type(model).__module__)\n'
    result = subprocess.run(
        [sys.executable, "-c", _HEAD + textwrap.dedent(script) + tail],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "loaded transformers_modules" in result.stdout
