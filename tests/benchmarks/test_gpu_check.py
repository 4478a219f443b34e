"""benchmarks/gpu_check.py in little: each part runs on a CPU and finds numbers."""

import pytest
from repository import BENCHMARKS


@pytest.mark.slow
def test_each_part_finds_something_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    path = tmp_path / "check.json"
    options = ["--size", "tiny", "--device", "cpu", "--threads", "1", "--vllm_python", "/bin/false"]
    results = gpu_check.main([*options, "--output", str(path)])
    assert path.exists()
    errors = {name: part["found"]["error"] for name, part in results["parts"].items() if "error" in part["found"]}
    assert errors == {} and set(results["parts"]) == set(gpu_check.PARTS)
    assert results["parts"]["vllm"]["found"] == {"left_out": "/bin/false has no vLLM"}
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
    assert gpu_check.has_failed(results)  # the exit code of the command


@pytest.mark.slow
def test_parts_may_be_skipped_and_vllm_runs_in_its_own_environment(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\nif [ "$1" != -c ]; then echo '{"parts": {"speed": 3}}' > "$3"; fi\n""")
    python.chmod(0o755)
    others = [name for name in gpu_check.PARTS if name != "vllm"]
    results = gpu_check.main(["--device", "cpu", "--vllm_python", str(python), "--skip", *others])
    assert {name: part["found"] for name, part in results["parts"].items()} == {"vllm": {"speed": 3}}
    assert not gpu_check.has_failed(results)
    python.write_text(python.read_text() + '[ "$1" = -c ]\n')  # a part of it fails
    results = gpu_check.main(["--device", "cpu", "--vllm_python", str(python), "--skip", *others])
    assert results["parts"]["vllm"]["found"]["speed"] == 3 and gpu_check.has_failed(results)
