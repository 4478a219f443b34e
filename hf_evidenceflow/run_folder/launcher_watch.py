"""A run ends when the launcher that started it does.

`accelerate launch` on one process starts the recipe and dies of SIGTERM or SIGINT alone; nothing would tell the
recipe.
"""

import ctypes
import os
import signal
import sys

import psutil

from .termination import Terminated


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAUNCHERS = ("accelerate", "torchrun", "hf-evidenceflow")
_LAUNCHER_MODULES = ("accelerate.commands", "torch.distributed.run", "torch.distributed.launch")
# What the launchers set for the recipe, and who becomes the parent of a process that has lost its own
_MARKS = ("ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID")
_ADOPTERS = ("systemd", "init", "tini", "dumb-init", "docker-init")


def end_with_launcher() -> None:
    """
    Have this process get SIGTERM when its parent ends, if that is `accelerate launch` or `torchrun`. Linux only.

    Any other parent (a shell that `nohup` or `disown` outlives, a Slurm step, an experiment's runner) may end.

    Raises:
        Terminated: If this process was launched, and its launcher has ended already.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    if _is_launcher(parent):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            raise Terminated
    elif any(mark in os.environ for mark in _MARKS) and _adopts_orphans(parent):
        raise Terminated


def _is_launcher(pid: int) -> bool:
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    names = [os.path.basename(part) for part in command[:3]]
    return any(name in _LAUNCHERS for name in names) or any(
        part.startswith(_LAUNCHER_MODULES) or "/accelerate/commands/" in part for part in command[:4]
    )


def _adopts_orphans(pid: int) -> bool:
    try:
        return pid == 1 or psutil.Process(pid).name() in _ADOPTERS
    except psutil.Error:
        return True
