"""Slurm's commands on PATH, as far as submitit calls them: `sbatch` keeps the script, whose command a test can run."""

import itertools
import os
import re
import shlex
from multiprocessing.process import BaseProcess
from pathlib import Path

from launching import fork_script


COMMANDS = {
    "sbatch": 'cp "$1" {folder}/script.sh; echo "Submitted batch job {job}"',
    "srun": "exit 1",  # has to be there
    "sacct": "cat {folder}/sacct.txt",
    "scontrol": 'echo "$@" >> {folder}/scontrol.txt',
}
_numbers = itertools.count(41)  # submitit remembers the states of jobs that have ended


class FakeSlurm:
    """
    Writes the commands.

    Args:
        folder (`Path`):
            Folder for them and for what they were given.
    """

    def __init__(self, folder: Path):
        self.folder, self.job = folder, str(next(_numbers))
        (folder / "bin").mkdir(parents=True)
        for name, line in COMMANDS.items():
            command = folder / "bin" / name
            command.write_text(f"#!/bin/sh\n{line.format(folder=folder, job=self.job)}\n")
            command.chmod(0o755)
        self.set_states({})

    @property
    def path(self) -> str:
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    @property
    def script(self) -> str:
        """The script that was submitted last."""
        return (self.folder / "script.sh").read_text()

    @property
    def requeued(self) -> str:
        """What `scontrol` was told."""
        return (self.folder / "scontrol.txt").read_text()

    def set_states(self, states: dict[int, str]) -> None:
        """What `sacct` says, by task of the array."""
        rows = [f"{self.job}_{task}|{state}|node1\n" for task, state in states.items()]
        (self.folder / "sacct.txt").write_text("JobID|State|NodeList\n" + "".join(rows))

    def start(self, task: int) -> BaseProcess:
        """Run one task of the array that was submitted last."""
        job = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": self.job, "SLURM_ARRAY_TASK_ID": str(task)}
        job |= dict(re.findall(r"^export (\w+)=(\w+)$", self.script, re.MULTILINE))
        *_, module, folder = shlex.split(self.script.splitlines()[-1])
        return fork_script(module, [folder], os.environ | job)
