"""One runner per experiment folder, and what a killed runner left behind."""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.files import read_json
from hf_evidenceflow.run_folder.lock import WAIT_SECONDS, FolderInUseError, folder_owner, hold_folder, is_alive


RUNNER_NAME = "runner.json"


class RunnerFile:
    """
    `runner.json`: the processes of the runs that a runner has started.

    Attributes:
        orphans (`set[str]`):
            Ids of runs that an earlier runner had started and not ended; their processes are gone.
    """

    def __init__(self, path: Path, orphans: set[str]):
        self.path = path
        self.orphans = orphans
        self.write({})

    def write(self, children: Mapping[str, int]) -> None:
        """Record the process ids of the runs that are going on."""
        entries = dict.fromkeys(self.orphans - set(children)) | {
            run: {"pid": pid, "started": _started(pid)} for run, pid in children.items()
        }
        atomic_write_json(self.path, {"pid": os.getpid(), "host": socket.gethostname(), "children": entries})


@contextmanager
def lock_experiment(output_dir: str | os.PathLike) -> Iterator[RunnerFile]:
    """
    Hold an experiment's folder for this process. The operating system frees it however the process ends.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the experiment; made when missing.

    Yields:
        [`RunnerFile`]: Where the processes of runs are noted.

    Raises:
        FolderInUseError: If another runner is at work, or if runs of a killed runner still are.
    """
    folder = Path(output_dir)
    with hold_folder(folder, "runner"):
        path = folder / RUNNER_NAME
        earlier = read_json(path) if path.exists() else {}
        children = earlier.get("children", {})
        deadline = time.monotonic() + WAIT_SECONDS  # what was killed may still be ending
        while (alive := _alive(folder, earlier.get("host"), children)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if alive:
            raise FolderInUseError(
                f"A runner of `{folder}` was killed, but runs that it started go on: {alive} (run: process). Wait for "
                "them, or end these processes."
            )
        yield RunnerFile(path, set(children))


def _alive(folder: Path, host: str | None, children: Mapping[str, dict | None]) -> dict[str, int | str]:
    # The process that was started may be gone and the run go on: `accelerate launch` and the recipe are two processes
    alive = {}
    for run, child in children.items():
        if (owner := folder_owner(folder / "runs" / run)) is not None:
            alive[run] = owner.pid if owner.host == socket.gethostname() else str(owner)
        elif host == socket.gethostname() and child and is_alive(**child):
            alive[run] = child["pid"]
    return alive


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
