"""The process of one run: its command, its start, its end."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from hf_evidenceflow.recipes.experiments.grid import Grid, packaged_file
from hf_evidenceflow.recipes.experiments.runs import RunFiles


# Time for a run to end by itself after Ctrl-C, and then after SIGTERM.
INTERRUPT_SECONDS = 20.0
TERMINATE_SECONDS = 5.0
# After SIGTERM as the first signal: the step at hand, at whose end a training run saves a checkpoint, takes minutes
SAVE_SECONDS = 900.0


@dataclass
class LaunchOptions:
    """
    How runs are started.

    Args:
        launcher (`str`, *optional*, defaults to `"accelerate"`):
            `"accelerate"` for `accelerate launch`, `"python"` for the recipe without it.
        threads (`int`, *optional*, defaults to `1`):
            CPU threads of one run.
        cpu (`bool`, *optional*, defaults to `False`):
            Whether `accelerate launch` gets `--cpu`.
        accelerate_config (`str`, *optional*):
            Config file of `accelerate launch`; it decides the number of processes then.
    """

    launcher: str = "accelerate"
    threads: int = 1
    cpu: bool = False
    accelerate_config: str | None = None

    def __post_init__(self):
        if self.launcher not in ("accelerate", "python"):
            raise ValueError(f"`launcher` must be 'accelerate' or 'python', got {self.launcher!r}.")
        if self.threads < 1:
            raise ValueError(f"`threads` must be at least 1, got {self.threads}.")
        if self.accelerate_config is not None and not os.path.isfile(self.accelerate_config):
            raise ValueError(f"`accelerate_config` names no file: {self.accelerate_config!r}.")

    def prefix(self) -> list[str]:
        """The command up to the recipe."""
        if self.launcher == "python":
            return [sys.executable]
        # Quiet, or the last lines of a failure would be about the launch rather than the recipe.
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
        command += ["--num_cpu_threads_per_process", str(self.threads)]
        if self.accelerate_config is not None:
            command += ["--config_file", self.accelerate_config]
        else:
            # All given, so that neither a config file of the user nor a warning about defaults comes in.
            command += ["--num_processes", "1", "--num_machines", "1"]
            command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        return command + ["--cpu"] * self.cpu


def launch_command(grid: Grid, files: RunFiles, options: LaunchOptions, resume: bool) -> list[str]:
    """
    The command of a run, as it can be pasted in the folder where the runner was called; `resume` goes on from its last
    checkpoint.
    """
    command = [
        *options.prefix(),
        str(packaged_file(grid.recipe)),
        "--config",
        str(files.options),
        "--output_dir",
        str(files.folder),
    ]
    command += ["--seed", str(files.spec.seed)]
    return command + (["--resume_from_checkpoint", "true"] if resume else [])


class RunProcess:
    """
    A run, started by its [`launch_command`] in a process group of its own, so that Ctrl-C reaches it through the
    runner only.
    """

    def __init__(self, files: RunFiles, command: list[str], threads: int):
        self.files = files
        self.command = shlex.join(command)
        with open(files.log, "a", encoding="utf-8") as log:
            log.write(f"\n$ {self.command}\n")
            log.flush()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def returncode(self) -> int | None:
        return self.process.poll()

    def signal(self, number: int) -> None:
        if os.name != "posix":
            self.process.terminate()
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def group_is_alive(self) -> bool:
        if self.process.poll() is None or os.name != "posix":
            return self.process.poll() is None
        # What `accelerate launch` has started may outlive it, writing its last checkpoint.
        return any(_in_group(process, self.process.pid) for process in psutil.process_iter())


def _in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def stop_processes(processes: Iterable[RunProcess], first: int = signal.SIGINT) -> None:
    """
    End runs by a signal, so that they can note it; those that take too long are terminated, then killed.

    Args:
        processes (`Iterable[RunProcess]`):
            Runs to end. Returns when all are gone.
        first (`int`, *optional*, defaults to `signal.SIGINT`):
            The signal: SIGINT as Ctrl-C, or SIGTERM, at which a training run saves a checkpoint.
    """
    left = list(processes)
    try:
        patience = SAVE_SECONDS if first == signal.SIGTERM else INTERRUPT_SECONDS
        for number, seconds in ((first, patience), (signal.SIGTERM, TERMINATE_SECONDS)):
            for process in left:
                process.signal(number)
            deadline = time.monotonic() + seconds
            while (left := [process for process in left if process.group_is_alive()]) and time.monotonic() < deadline:
                time.sleep(0.05)
    finally:  # also at a second Ctrl-C
        for process in left:
            process.signal(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has none
            process.process.wait()
