"""One process at a time for each folder: the lock of output folders and of experiments.

filelock, which torch requires as well, also works on Windows and on file systems without `flock`.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..atomic_write import atomic_write_json


# The underscore keeps them out of what `push_to_hub` uploads.
LOCK_NAME = "_run.lock"
OWNER_NAME = "_owner.json"
# Whoever only looks whether a folder is free holds the lock for an instant.
WAIT_SECONDS = 2.0


class FolderInUseError(RuntimeError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder: its id, host, and start (seconds since the epoch), as ids are used again."""

    pid: int
    host: str
    started: float

    @classmethod
    def this_process(cls) -> "Owner":
        return cls(os.getpid(), socket.gethostname(), psutil.Process().create_time())

    def is_alive(self) -> bool:
        """Whether the process runs on this host; `False` for one on another host, which cannot be known."""
        return self.host == socket.gethostname() and is_alive(self.pid, self.started)

    def __str__(self):
        started = datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds")
        return f"process {self.pid} on {self.host}, started {started}"


def is_alive(pid: int, started: float | None) -> bool:
    """Whether a process of this id and start (seconds since the epoch) runs on this host."""
    try:
        process = psutil.Process(pid)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike, kind: str = "run") -> Iterator[None]:
    """
    Hold a folder, made when missing, for this process. The operating system frees it however the process ends. `kind`
    is what works in it, for the message.

    Raises:
        FolderInUseError: if another process holds the folder. OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=WAIT_SECONDS, poll_interval=0.05)
    except Timeout:
        raise FolderInUseError(_in_use(folder, kind, _read_owner(folder))) from None
    try:
        # Without a lock that works (some network file systems), the note of a live process counts
        earlier = _read_owner(folder)
        if earlier is not None and earlier != Owner.this_process() and earlier.is_alive():
            raise FolderInUseError(_in_use(folder, kind, earlier))
        atomic_write_json(folder / OWNER_NAME, asdict(Owner.this_process()))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / OWNER_NAME).unlink(missing_ok=True)
    finally:
        lock.release()


def folder_owner(folder: str | os.PathLike) -> Owner | None:
    """The live process that holds a folder; `None` if it is free, also where a killed process left its note."""
    folder = Path(folder)
    if not (folder / LOCK_NAME).exists():
        return None
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read_owner(folder)
    lock.release()
    owner = _read_owner(folder)
    return owner if owner is not None and owner.is_alive() else None


def is_abandoned(folder: str | os.PathLike) -> bool:
    """
    Whether the lock shows that whoever held a folder is gone; `False` also where it shows nothing: the folder was
    never held, or last from another host.
    """
    folder = Path(folder)
    if not (folder / LOCK_NAME).exists() or folder_owner(folder) is not None:
        return False
    last = _read_owner(folder)
    return last is None or last.host == socket.gethostname()


def _in_use(folder: Path, kind: str, owner: Owner | None) -> str:
    return (
        f"Another {kind} works on `{folder}` ({owner or 'its process is unknown'}). Wait for it, stop it, or use "
        "another output folder."
    )


def _read_owner(folder: Path) -> Owner | None:
    try:
        return Owner(**json.loads((folder / OWNER_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
