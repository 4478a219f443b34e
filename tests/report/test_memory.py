import torch

from hf_evidenceflow.report.memory import cgroup_rooms, free_memory, held_memory, peak_memory


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
