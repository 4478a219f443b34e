import os
import subprocess
import sys

import pytest
import torch

from hf_evidenceflow.report.memory import cgroup_rooms, free_memory, held_memory, map_large_tensors, peak_memory


CPU = torch.device("cpu")


def write_group(folder, limit, used, inactive):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_memory_is_in_bytes_and_the_peak_is_no_less_than_what_is_held():
    assert 50e6 < held_memory(CPU) <= peak_memory() * 1.05 < 1e12
    assert 1e6 < free_memory(CPU) < 1e14


def test_each_limit_above_the_process_counts_and_cached_files_do_not(tmp_path):
    write_group(tmp_path, "max", 900, 0)
    write_group(tmp_path / "job", 1000, 700, 200)
    write_group(tmp_path / "job" / "step", 600, 250, 0)
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    assert cgroup_rooms(tmp_path, tmp_path / "cgroup") == [350, 500]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cgroup_rooms(tmp_path, tmp_path / "none") == []


GLIBC = sys.platform.startswith("linux") and "glibc" in os.confstr("CS_GNU_LIBC_VERSION")
HOLES = """
import sys, torch
sys.argv[0] = "hf-evidenceflow"  # by this name the package registers no models, which takes seconds
from hf_evidenceflow.report.memory import held_memory, map_large_tensors
if sys.argv[1] == "map":
    assert map_large_tensors()
torch.ones(7 << 20)  # 28 MB, freed: glibc's own limit moves up
freed = [torch.ones(3 << 20) for _ in range(20)]
kept = torch.ones(3 << 20)  # above them in a heap
del freed
print(held_memory(torch.device("cpu")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="glibc's heap")
def test_holes_between_tensors_go_back_to_the_system():
    held = {
        way: int(subprocess.run([sys.executable, "-c", HOLES, way], capture_output=True, text=True, check=True).stdout)
        for way in ("map", "heap")
    }
    assert held["heap"] - held["map"] > 0.8 * 20 * 12 * 2**20


def test_a_limit_that_was_set_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "100000")
    assert not map_large_tensors()
