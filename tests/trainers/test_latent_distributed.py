"""LatentSFTTrainer on two CPU processes against one."""

import json
import subprocess

import pytest
import torch
from latent_worker import BATCHES
from launching import run_ranks
from safetensors.torch import load_file


def run(folder, checkpoint, strategy, objective, *further):
    folder.mkdir()
    run_ranks("latent_worker.py", checkpoint, folder, strategy, objective, *further, processes=1 + (strategy != "one"))
    logs = [json.loads(path.read_text()) for path in sorted(folder.glob("log-*.json"))]
    return load_file(folder / "model.safetensors"), [[row for row in log if "loss" in row] for log in logs]


@pytest.fixture(scope="module")
def one_process(plain_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return {name: run(folder / name, plain_checkpoint, "one", name) for name in BATCHES}


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, strategy",
    [
        ("soft_targets", "ddp"),
        ("answer", "ddp"),
        ("answer", "fsdp2"),
        ("distill", "ddp"),
        ("distill", "fsdp2"),
    ],
)
def test_two_processes_have_the_losses_and_weights_of_one(
    one_process, plain_checkpoint, tmp_path, objective, strategy
):
    """Rows with unequal numbers of thoughts; in a step of two batches, one process has a batch without any."""
    weights, logs = run(tmp_path / "two", plain_checkpoint, strategy, objective)
    expected, (expected_log,) = one_process[objective]
    assert len(logs) == 2 and logs[0] == logs[1]
    for found, row in zip(logs[0], expected_log, strict=True):
        assert found["loss"] == pytest.approx(row["loss"], abs=1e-5)
        assert found["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
        assert objective == "distill" or found["num_tokens"] == row["num_tokens"]
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_processes_whose_rows_are_of_different_stages_go_on(plain_checkpoint, tmp_path):
    _, logs = run(tmp_path / "two", plain_checkpoint, "ddp", "answer", "earlier")
    assert logs[0] == logs[1] and len(logs[0]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, message",
    [
        ("projection", "need as many thoughts in all processes, and the rows have 0, 1, 2, 3"),
        ("embedding", "averages embeddings outside of a pass"),
    ],
)
def test_sharded_weights_are_refused_where_they_do_not_go(plain_checkpoint, tmp_path, mode, message):
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(tmp_path / "two", plain_checkpoint, "fsdp2", "soft_targets", mode)
    assert message in error.value.stderr
