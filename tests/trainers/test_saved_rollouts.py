"""Rollouts that a checkpoint holds: used up to the last one, or dropped with the reason by all processes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from launching import run_ranks
from saved_rollouts_worker import RecordsPlaces, make_trainer

from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import PPOTrainer
from hf_evidenceflow.trainers.saved_rollouts import dataset_fingerprint


@pytest.fixture(scope="module")
def whole(plain_checkpoint, tmp_path_factory):
    """Four steps of HRPO on each rollout; a checkpoint in the middle of the first one."""
    trainer = make_trainer(plain_checkpoint, tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


def resume(whole, tmp_path, checkpoint=None, **settings):
    checkpoint = checkpoint or Path(whole.args.output_dir, "checkpoint-2")
    resumed = make_trainer(whole.tokenizer_path, tmp_path / "resumed", save_strategy="no", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    return resumed


def losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def test_the_saved_rollouts_are_used_up(whole, tmp_path, caplog):
    resumed = resume(whole, tmp_path)
    assert whole.rollout_places == [0, 4] and resumed.rollout_places == [4]
    assert losses(resumed) == losses(whole)
    assert "fresh rollouts" not in caplog.text


@pytest.mark.parametrize(
    "settings, reason, places",
    [
        ({"steps_per_generation": 8}, "`steps_per_generation` was 4 and is 8", [2]),
        ({"beta": 0.1}, "`beta` was 0.0 and is 0.1", [2, 4]),
        ({"per_device_train_batch_size": 4}, "`per_device_train_batch_size` was 2 and is 4", [2, 4]),
        ({"temperature": 0.7}, "`temperature` was 1.0 and is 0.7", [2, 4]),
        ({"rows": 80}, '`train_dataset` was "64 rows', [2, 4]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_setting_drops_them_and_fresh_ones_come_at_their_place(
    whole, tmp_path, caplog, settings, reason, places
):
    resumed = resume(whole, tmp_path, **settings)
    assert resumed.state.global_step == 6 and resumed.rollout_places == places
    warnings = [record.getMessage() for record in caplog.records if "fresh rollouts" in record.getMessage()]
    assert len(warnings) == 1 and reason in warnings[0]


@pytest.mark.parametrize("damage", ["cut", "missing", "of another step", "not a dictionary"])
def test_a_file_of_no_use_is_named_and_the_run_goes_on(whole, tmp_path, caplog, damage):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(Path(whole.args.output_dir, "checkpoint-2"), checkpoint)
    path = checkpoint / "rollouts_0.pt"
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
        reason = "the file cannot be read"
    elif damage == "missing":
        path.unlink()
        reason = "the file is missing"
    elif damage == "of another step":
        saved = torch.load(path, weights_only=True)
        saved["settings"]["global_step"] = "7"
        torch.save(saved, path)
        reason = "`global_step` was 7 and is 2"
    else:
        torch.save([1, 2], path)
        reason = "the file cannot be read, TypeError"
    resumed = resume(whole, tmp_path, checkpoint)
    assert resumed.rollout_places == [2, 4]
    assert reason in caplog.text and "rollouts_0.pt" in caplog.text


def test_a_checkpoint_between_two_rollouts_holds_none_and_nothing_is_said(whole, tmp_path, caplog):
    checkpoint = Path(whole.args.output_dir, "checkpoint-4")
    assert not list(checkpoint.glob("rollouts_*"))
    assert resume(whole, tmp_path, checkpoint).rollout_places == [4]
    assert "fresh rollouts" not in caplog.text


def test_a_changed_setting_moves_the_place_of_the_next_rollouts(whole, tmp_path):
    """Saved between two rollouts, resumed inside one of eight steps."""
    checkpoint = Path(whole.args.output_dir, "checkpoint-4")
    assert resume(whole, tmp_path, checkpoint, steps_per_generation=8, max_steps=10).rollout_places == [4, 8]


def test_a_second_training_starts_with_fresh_rollouts(whole, plain_checkpoint, tmp_path):
    trainer = make_trainer(plain_checkpoint, tmp_path, max_steps=2, save_strategy="no")
    trainer.train()
    trainer.train()
    assert trainer.rollout_places == [0, 0]


def test_ppo_goes_on_inside_the_epochs_of_a_rollout(plain_checkpoint, tmp_path):
    class Recorded(RecordsPlaces, PPOTrainer):
        pass

    settings = {
        "trainer": Recorded,
        "mode": "none",
        "config": PPOConfig,
        "num_iterations": 3,
        "steps_per_generation": 2,
    }
    whole = make_trainer(plain_checkpoint, tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(plain_checkpoint, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert whole.rollout_places == [0] and resumed.rollout_places == []
    assert losses(whole) == losses(resumed)


def test_the_fingerprint_tells_data_apart_and_is_the_same_for_the_same_rows():
    rows = [{"prompt": f"{index}?", "answer": "3"} for index in range(200)]
    data = Dataset.from_list(rows)
    assert dataset_fingerprint(data) == dataset_fingerprint(Dataset.from_list(rows).filter(lambda row: True))
    assert len({dataset_fingerprint(part) for part in (data, data.select(range(199)), data.shuffle(seed=1))}) == 3
    assert dataset_fingerprint(data.to_iterable_dataset()) is None


@pytest.mark.slow
def test_all_processes_use_the_saved_rollouts_or_none_does(whole, plain_checkpoint, tmp_path, caplog):
    """Two processes resume their own checkpoint, one with a file missing, and one process's; one resumes theirs."""
    one = Path(whole.args.output_dir, "checkpoint-2")
    run_ranks("saved_rollouts_worker.py", plain_checkpoint, tmp_path, one)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["own"]["places"] == [4] and found["own"]["losses"] == found["whole"]["losses"]
        expected = {
            "file of rank 1 missing": ["the file is missing (`rollouts_1.pt`)"],
            "file of rank 1 cut": ["the file cannot be read", "(`rollouts_1.pt`)"],
            "one process's": ["`number of processes` was 1 and is 2"],
        }
        for name, reasons in expected.items():
            assert found[name]["places"] == [2, 4], name
            assert found[name]["step"] == 6
            assert len(found[name]["warnings"]) == (rank == 0), name
            assert all(reason in warning for warning in found[name]["warnings"] for reason in reasons), name
    two = tmp_path / "whole" / "checkpoint-2"
    assert resume(whole, tmp_path, two).rollout_places == [2, 4]
    assert "`number of processes` was 2 and is 1" in caplog.text
