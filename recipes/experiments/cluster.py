"""A grid's runs as Slurm jobs, through submitit: a job is a run, and a job array is what one call submits."""

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.files import read_text
from hf_evidenceflow.recipes.experiments.grid import Grid
from hf_evidenceflow.recipes.experiments.launcher import LaunchOptions, RunProcess, launch_command, stop_processes
from hf_evidenceflow.recipes.experiments.runs import RunFiles


POLL_SECONDS = 0.5


class ClusterRun:
    """
    One run as its job executes it. submitit pickles it, so that it holds settings and paths only.

    A run that is preempted or reaches its time limit saves a checkpoint and is queued again (`scontrol requeue`, for
    the time limit at most three times); it goes on from there.

    Args:
        grid ([`Grid`]):
            The grid.
        files ([`RunFiles`]):
            The run.
        options ([`LaunchOptions`]):
            How it is started.
    """

    def __init__(self, grid: Grid, files: RunFiles, options: LaunchOptions):
        self.grid = grid
        self.files = files
        self.options = options

    def __call__(self) -> int:
        command = launch_command(self.grid, self.files, self.options, resume=self.files.prepare())
        self.process = RunProcess(self.files, command, self.options.threads)
        while (code := self.process.returncode()) is None:
            time.sleep(POLL_SECONDS)
        if self.files.finished_record() is None:
            self.files.record_failure(code, self.process.command)
        return code

    def checkpoint(self):
        """What submitit calls at its signal: ends the run by SIGTERM, at which it saves, and gives what to queue."""
        stop_processes([self.process], signal.SIGTERM)
        return _submitit().helpers.DelayedSubmission(ClusterRun(self.grid, self.files, self.options))


def submit_runs(runs: Sequence[ClusterRun], folder: Path, jobs: int, slurm: Mapping[str, Any]) -> list[str]:
    """
    Submit runs as one job array, and note each run's job next to its files.

    Args:
        runs (`Sequence[ClusterRun]`):
            The runs.
        folder (`Path`):
            Folder for the scripts and logs of the jobs; on a file system that all nodes share.
        jobs (`int`):
            Jobs at once.
        slurm (`Mapping[str, Any]`):
            Options of `sbatch`, as in [`~hf_evidenceflow.recipes.experiments.grid_file.load_grid`].

    Returns:
        `list[str]`: Job id of each run.

    Raises:
        ImportError: If submitit is not installed.
        RuntimeError: If there is no Slurm here, or `sbatch` failed.
        ValueError: If submitit knows no option of that name.
    """
    if not runs:
        return []
    executor = _submitit().SlurmExecutor(folder)
    defaults = {"cpus_per_task": runs[0].options.threads, "array_parallelism": jobs, "stderr_to_stdout": True}
    executor.update_parameters(**defaults | {"job_name": runs[0].grid.name} | slurm)
    submitted = executor.submit_array(runs)
    for run, job in zip(runs, submitted):
        atomic_write_text(run.files.job, f"{job.job_id}\n")
    return [job.job_id for job in submitted]


def is_queued(files: RunFiles, folder: Path) -> bool:
    """Whether the job that a run was submitted as waits or runs, also where `sacct` cannot tell."""
    return files.job.exists() and not _submitit().SlurmJob(folder, read_text(files.job).strip()).done()


def _submitit():
    try:
        import submitit
    except ImportError as error:
        raise ImportError("Slurm jobs need submitit: pip install 'hf-evidenceflow[experiments]'.") from error
    return submitit
