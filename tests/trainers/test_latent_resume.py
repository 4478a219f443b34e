"""A curriculum that is cut off and goes on is the one that was not cut off: log, stages, optimizer and weights."""

import os
import shutil
import signal

import pytest
import torch
from latent_trainers import STEPS, TARGETS, make_latent_trainer, make_thinking_model, weights_of
from transformers import TrainerCallback

from hf_evidenceflow.run_folder.checkpoints import last_whole_checkpoint
from hf_evidenceflow.run_folder.termination import Terminated, handle_sigterm


TIMES = ("runtime", "per_second")
# Five steps an epoch, so that stages and checkpoints end inside of one
STAGES = {"latent_curriculum": [0, 1, 2], "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
SETTINGS = {
    "steps": {"latent_steps_per_stage": 2},
    "earlier stages": {"latent_steps_per_stage": 2, "earlier_stage_share": 0.5},
    "reset optimizer": {"latent_steps_per_stage": 2, "reset_optimizer": True},
    "until a loss": {"latent_steps_per_stage": None, "latent_until_loss": 100.0, "logging_steps": 2},
    "accumulation": {"latent_steps_per_stage": 2, "gradient_accumulation_steps": 2, "earlier_stage_share": 0.5},
    "random thoughts": {"objective": "soft_targets", "latent_curriculum": [1, 2, 3], "teacher_forcing_steps": 3},
}


@pytest.fixture
def make(tmp_path, tokenizer):
    def make(folder, name, **further):
        settings = STAGES | SETTINGS[name] | further
        random = settings.get("objective") == "soft_targets"
        rows = (TARGETS if random else STEPS) * 2 + (TARGETS if random else STEPS)[:2]
        model = None
        if random:
            settings["thinking_mode"] = "embedding"
            model = make_thinking_model("embedding")
        objective = settings.pop("objective", "answer")
        return make_latent_trainer(tmp_path / folder, tokenizer, objective, rows, model, **settings)

    return make


def log(trainer):
    return [
        {name: value for name, value in row.items() if not name.endswith(TIMES)} for row in trainer.state.log_history
    ]


def assert_same_run(resumed, whole):
    assert log(resumed) == log(whole)
    assert resumed.curriculum_state == whole.curriculum_state
    expected = weights_of(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(resumed).items())
    for ours, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_curriculum_goes_on_bit_exactly(make, tmp_path, name):
    """From each checkpoint, inside of stages and at their borders."""
    whole = make("whole", name)
    whole.train()
    stages = [row["latent/stage"] for row in log(whole) if "latent/stage" in row]
    assert len(set(stages)) == 3 and stages == sorted(stages)
    for step in range(1, 6):
        shutil.copytree(tmp_path / "whole", tmp_path / str(step))
        resumed = make(str(step), name)
        resumed.train(resume_from_checkpoint=str(tmp_path / str(step) / f"checkpoint-{step}"))
        assert_same_run(resumed, whole)


class Terminate(TrainerCallback):
    """Sends SIGTERM to this process inside of a step."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_that_sigterm_ended_inside_a_stage_goes_on(make, tmp_path, step):
    whole = make("whole", "accumulation")
    whole.train()
    with handle_sigterm(), pytest.raises(Terminated):
        make("run", "accumulation", save_steps=100, callbacks=[Terminate(step)]).train()
    checkpoint = last_whole_checkpoint(tmp_path / "run")
    assert checkpoint.endswith(f"checkpoint-{step + 1}")
    resumed = make("run", "accumulation", save_steps=100)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_run(resumed, whole)


def test_rows_of_earlier_stages_are_drawn_anew_at_each_step(make):
    trainer = make("run", "earlier stages")
    trainer.train()
    counts = []
    for step in (4, 5, 4):
        trainer.state.global_step = step
        trainer.state.max_steps = 6
        batches, _ = trainer.get_batch_samples(iter([list(trainer.train_dataset)] * 2), 2, "cpu")
        counts.append([tuple(batch["latent_mask"].sum(1).tolist()) for batch in batches])
    assert counts[0] == counts[2] != counts[1] and counts[0][0] != counts[0][1]
    assert {number for step in counts for batch in step for number in batch} == {0, 1, 2}
