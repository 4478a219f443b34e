"""Bytes: the peak so far, what is held and what is free, of the GPU where there is one, else of the machine."""

import ctypes
import os
import sys
from pathlib import Path

import psutil
import torch


_CGROUPS = Path("/sys/fs/cgroup")
_M_MMAP_THRESHOLD = -3  # of malloc.h


def peak_memory() -> int | None:
    """Most bytes at once: of the GPU's tensors, else of the process; `None` where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def held_memory(device: torch.device) -> int:
    """Bytes that this process holds: tensors on a GPU, else all."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device; on a CPU within the limit of its container, too."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min([psutil.virtual_memory().available, *cgroup_rooms()])


def cgroup_rooms(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the limits of this process's control groups (version 2, Linux) leave free; cached files do not count."""
    try:
        path = own.read_text("utf-8").rpartition("0::/")[2].strip()
    except OSError:
        return []
    rooms = []
    for folder in (root / path, *(root / path).parents):
        try:
            limit, used = ((folder / name).read_text("utf-8").strip() for name in ("memory.max", "memory.current"))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
        except OSError:
            continue
        if limit != "max":
            rooms.append(max(0, int(limit) - int(used) + int(statistics.get("inactive_file", 0))))
    return rooms


def map_large_tensors(least: int = 4 << 20) -> bool:
    """
    Let glibc take CPU tensors of `least` bytes or more from the system one by one, and give them back when freed.

    By itself it moves that limit up to 32 MB as tensors are freed, and its heap cannot fill the holes that aligned
    blocks leave: an update then holds up to four times what it uses. Whoever has set `MALLOC_MMAP_THRESHOLD_` is left
    alone.

    Returns:
        `bool`: whether the limit was set; it is not outside of Linux with glibc.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, least))
    except AttributeError:  # another libc
        return False
