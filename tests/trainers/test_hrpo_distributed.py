"""HRPOTrainer on two CPU processes against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file


WORKER = Path(__file__).with_name("distributed_worker.py")
CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("ddp", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("zero2", "DEEPSPEED"),
        ("zero3", "DEEPSPEED"),
        ("cpu_2_processes", "MULTI_CPU"),
    ],
)
def test_accelerate_reads_the_config_file(name, kind):
    assert load_config_from_file(str(CONFIGS / f"{name}.yaml")).distributed_type == kind


@pytest.fixture
def runs(plain_checkpoint, tmp_path):
    """Folders of a run on one process and of one on two."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        subprocess.run(
            [sys.executable, *launch, str(WORKER), str(plain_checkpoint), str(folder), str(processes)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=240,
        )
        folders.append(folder)
    return folders


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_and_keep_equal_weights(runs):
    one, two = runs
    expected = load_file(one / "gradients-0.safetensors")
    assert any("thinking_projection" in name for name in expected)
    for rank in (0, 1):
        actual = load_file(two / f"gradients-{rank}.safetensors")
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    first, second = (load_file(two / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
