"""One runner per experiment folder, and what a killed runner left behind."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..files import read_json
from ..reporting import atomic_write_json


RUNNER_NAME = "runner.json"


class RunnerFile:
    """
    `runner.json`: which process works on the folder, and the processes of its runs.

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
        RuntimeError: If another runner is at work, or if runs of a killed runner still are.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUNNER_NAME
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        earlier = _read(path)
        raise RuntimeError(
            f"Another runner works on `{folder}` (process {earlier.get('pid')} on {earlier.get('host')}). Wait for "
            "it, stop it, or use another output folder."
        ) from None
    try:
        earlier = _read(path)
        children = earlier.get("children", {})
        alive = {}
        if earlier.get("host") == socket.gethostname():
            alive = {run: child["pid"] for run, child in children.items() if child and _is_alive(**child)}
        if alive:
            raise RuntimeError(
                f"A runner of `{folder}` was killed, but runs that it started go on: {alive} (run: process). Wait for "
                "them, or end these processes."
            )
        yield RunnerFile(path, set(children))
    finally:
        lock.release()


def _read(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _is_alive(pid: int, started: float | None) -> bool:
    # Process ids are used again: the start tells whether it is still the same process.
    now = _started(pid)
    return now is not None and now == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
