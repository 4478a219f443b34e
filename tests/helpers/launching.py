"""Starts a worker of this folder in several processes."""

import os
import subprocess
import sys

from repository import HELPERS


def run_ranks(worker, *arguments, processes=2, **environment):
    return _run([str(HELPERS / "fork_ranks.py"), str(processes)], worker, arguments, environment)


def launch(worker, *arguments, processes=2, **environment):
    """By torchrun, which starts ranks that end again; takes longer than [`run_ranks`]."""
    # By default the launcher's store keeps the addresses of dead processes, and gloo waits for those
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environment}
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--max-restarts=3"]
    return _run(command, worker, arguments, environment)


def _run(command, worker, arguments, environment):
    return subprocess.run(
        [sys.executable, *command, str(HELPERS / worker), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=240,
        capture_output=True,
        text=True,
        check=True,
    )
