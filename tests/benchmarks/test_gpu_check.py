"""benchmarks/gpu_check.py in little: each part runs on a CPU and finds numbers."""

import pytest
from repository import BENCHMARKS


@pytest.mark.slow
def test_each_part_finds_something_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    path = tmp_path / "check.json"
    results = gpu_check.main(["--size", "tiny", "--device", "cpu", "--threads", "1", "--output", str(path)])
    assert path.exists()
    errors = {name: part["found"]["error"] for name, part in results["parts"].items() if "error" in part["found"]}
    assert errors == {} and set(results["parts"]) == set(gpu_check.PARTS)
    gaps = {name: gap["largest"] for name, gap in results["parts"]["parity"]["found"].items() if "fp32" in name}
    assert len(gaps) == 6 and max(gaps.values()) <= 1e-4
    assert all(
        row["same_tokens"] == 1 for mode in results["parts"]["decoding"]["found"].values() for row in mode.values()
    )


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_others(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    def broken(tiny, device):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu_check.PARTS, "rollout", broken)
    monkeypatch.setitem(gpu_check.PARTS, "latent", lambda tiny, device: {"x": 1})
    results = gpu_check.main(["--size", "tiny", "--device", "cpu", "--parts", "rollout", "latent"])
    assert "no such kernel" in results["parts"]["rollout"]["found"]["error"]
    assert results["parts"]["latent"]["found"] == {"x": 1}
