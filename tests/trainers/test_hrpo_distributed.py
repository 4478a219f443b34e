"""HRPOTrainer on two CPU processes against one."""

import itertools
import json
import re

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from launching import launch, run_ranks
from repository import RECIPES
from safetensors.torch import load_file

from hf_evidenceflow import load_thinking_model


CONFIGS = RECIPES / "accelerate"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("ddp", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("zero2", "DEEPSPEED"),
        ("zero3", "DEEPSPEED"),
        ("cpu_2_processes", "MULTI_CPU"),
    ],
)
def test_accelerate_reads_the_config_file(name, kind):
    assert load_config_from_file(str(CONFIGS / f"{name}.yaml")).distributed_type == kind


# With prompts of 5 and completions of 6, 4, 3 and 1 tokens the first process makes two passes, the second one
UPDATES = {
    "buckets": {"share_prompts_in_update": False},
    "shared": {},
    "unlike numbers of passes": {"update_max_tokens": 12},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "mode", "module"),
    [
        *((update, "projection", "thinking_projection") for update in UPDATES),
        (next(iter(UPDATES)), "tarpo", "thinking_head"),
    ],
)
def test_two_processes_have_the_gradients_of_one_and_keep_equal_weights(
    update, mode, module, plain_checkpoint, tmp_path
):
    folders = []
    for processes in (1, 2):
        folders.append(tmp_path / str(processes))
        folders[-1].mkdir()
        settings = json.dumps(UPDATES[update])
        arguments = plain_checkpoint, folders[-1], processes, settings, mode
        run_ranks("distributed_worker.py", *arguments, processes=processes)
    one, two = folders
    expected = load_file(one / "gradients-0.safetensors")
    assert any(module in name and gradient.any() for name, gradient in expected.items())
    for rank in (0, 1):
        actual = load_file(two / f"gradients-{rank}.safetensors")
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    first, second = (load_file(two / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    rewards = [
        [row["reward"] for row in json.loads((two / f"metrics-{rank}.json").read_text()) if "reward" in row]
        for rank in (0, 1)
    ]
    assert rewards[0] == rewards[1]


@pytest.mark.slow
def test_generation_on_sharded_weights_is_that_on_whole_ones_when_processes_end_at_different_steps(
    plain_checkpoint, tmp_path
):
    run_ranks("fsdp_worker.py", plain_checkpoint, tmp_path)
    results = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for found in results:
        for name in [name.removesuffix(".found") for name in found if name.endswith(".found")]:
            # States: another order of summation in float32
            torch.testing.assert_close(found[f"{name}.found"], found[f"{name}.expected"], rtol=1e-5, atol=1e-5)
    assert results[0]["projection.tokens.found"].shape[1] > results[1]["projection.tokens.found"].shape[1]
    assert {name.split(".")[1] for name in results[0]} == {"tokens", "mask", "states"}


@pytest.fixture(scope="module")
def one_process(plain_checkpoint, tmp_path_factory):
    """Weights by mode after two steps on fixed rollouts in one process."""
    found = {}
    for mode in ("projection", "embedding"):
        folder = tmp_path_factory.mktemp("one-process")
        run_ranks("sharded_worker.py", plain_checkpoint, folder, "one", mode, "fp32", processes=1)
        found[mode] = load_file(folder / "fixed" / "model.safetensors")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, mode, kind",
    [
        ("ddp", "projection", "fp32"),
        ("fsdp2", "projection", "fp32"),
        ("fsdp2", "embedding", "fp32"),
        ("fsdp2", "projection", "bf16"),
        ("fsdp2", "projection", "bf16-adapter"),
        ("zero2", "projection", "fp32"),
        ("zero2", "projection", "bf16-adapter"),
        ("zero3", "projection", "fp32"),
        ("zero3", "embedding", "fp32"),
        ("zero3", "projection", "fp32-adapter"),
        ("zero3", "projection", "bf16"),
        ("zero3", "projection", "bf16-adapter"),
    ],
)
def test_sharded_training_equals_one_process_and_resumes(
    strategy, mode, kind, one_process, plain_checkpoint, tmp_path
):
    """The real Trainer with accelerate's FSDP2 and DeepSpeed, on two CPU processes: updates, rollouts, checkpoints."""
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    run_ranks("sharded_worker.py", plain_checkpoint, tmp_path, strategy, mode, kind)
    if kind == "fp32":
        weights = load_file(tmp_path / "fixed" / "model.safetensors")
        for name, expected in one_process[mode].items():
            torch.testing.assert_close(weights[name], expected, atol=1e-5, rtol=0)
    kept = ("loss", "reward", "grad_norm", "thinking/gate_mean", "thinking/hidden_ratio", "completions/mean_length")
    for rank in (0, 1):
        whole, resumed = (json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for name in ("whole", "resumed"))
        assert whole["sharding"] == {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}.get(strategy, "DEEPSPEED")
        # ZeRO-3 holds weights of one dtype, and fp32 ones beside them
        dtype = "torch.bfloat16" if strategy == "zero3" and "bf16" in kind else "torch.float32"
        assert set(whole["thinking"].values()) == {dtype}
        first, second = ([[row.get(key) for key in kept] for row in run["log"][:2]] for run in (whole, resumed))
        assert first == second and None not in itertools.chain(*first)
        gap = max(row["thinking/parity_gap_mean"] for row in whole["log"] if "thinking/parity_gap_mean" in row)
        assert gap < (2e-2 if "bf16" in kind else 1e-4)
    load_thinking_model(tmp_path / "resumed" / "checkpoint-2")


def checkpoint_state(folder):
    """Weights, optimizer state and log of the last checkpoint."""
    checkpoint = folder / "checkpoint-4"
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    kept = ("loss", "reward", "grad_norm", "thinking/gate_mean", "completions/mean_length")
    return (
        load_file(checkpoint / "model.safetensors"),
        torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"],
        [{key: row.get(key) for key in kept} for row in log],
    )


@pytest.mark.slow
def test_a_process_killed_while_saving_loses_nothing(plain_checkpoint, tmp_path):
    """
    SIGKILL to one of two processes inside the second checkpoint; the launcher starts both again. The uninterrupted run
    logs the same on both.
    """
    launch("resume_worker.py", plain_checkpoint, tmp_path / "whole")
    for name in ("thinking/state_cosine", "thinking/gate_mean", "rollout/tokens_per_second"):
        logs = [json.loads((tmp_path / "whole" / f"log-{rank}.json").read_text()) for rank in (0, 1)]
        first, second = ([row[name] for row in log if name in row] for log in logs)
        assert len(first) >= 4 and first == second, name
    killed = launch("resume_worker.py", plain_checkpoint, tmp_path / "killed", KILL_AT_STEP="4")
    assert "start 0 from None" in killed.stdout
    assert re.search("start [1-3] from checkpoint-2", killed.stdout)
    expected, found = checkpoint_state(tmp_path / "whole"), checkpoint_state(tmp_path / "killed")
    assert all(torch.equal(found[0][name], tensor) for name, tensor in expected[0].items())
    for index, state in expected[1].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(found[1][index][name]), torch.as_tensor(value))
    assert found[2] == expected[2] and len(found[2]) == 4
