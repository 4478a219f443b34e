"""Starts a worker of this folder in several processes."""

import os
import subprocess
import sys

from repository import HELPERS


def launch(worker, *arguments, processes=2, **environment):
    # By default the launcher's store keeps the addresses of dead processes, and gloo waits for those
    environment = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environment}
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--max-restarts=3"]
    return subprocess.run(
        [sys.executable, *command, str(HELPERS / worker), *map(str, arguments)],
        env={**os.environ, **environment},
        timeout=240,
        capture_output=True,
        text=True,
        check=True,
    )
