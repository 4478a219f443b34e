"""A run that is cut off and goes on is the run that was not cut off."""

import errno
import os
import shutil
import signal
from functools import cache, partial

import pytest
import torch
from tiny_trainer import make_data, make_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_evidenceflow.callbacks.log_file import LogFileCallback
from hf_evidenceflow.evaluation.completion_log import read_jsonl
from hf_evidenceflow.run_folder import termination
from hf_evidenceflow.run_folder.checkpointed_callback import CheckpointedCallback
from hf_evidenceflow.run_folder.checkpoints import last_whole_checkpoint
from hf_evidenceflow.run_folder.manifest import manifest_problem
from hf_evidenceflow.run_folder.resumable_trainer import ResumableTrainerMixin
from hf_evidenceflow.run_folder.termination import Terminated, handle_sigterm


TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime")
TIMES += ("eval_samples_per_second", "eval_steps_per_second")


class Resumable(ResumableTrainerMixin, Trainer):
    """Counts the micro-batches that it trains."""

    trained = 0

    def training_step(self, model, *args, **kwargs):
        self.trained += 1
        return super().training_step(model, *args, **kwargs)


class OwnFile(CheckpointedCallback):
    """Has a file in each checkpoint."""

    def write_files(self, checkpoint, args):
        (checkpoint / "own.txt").write_text("whole")


class Terminate(TrainerCallback):
    """Sends SIGTERM to this process at an event of a step."""

    def __init__(self, event, step):
        self.step = step
        setattr(self, event, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            os.kill(os.getpid(), signal.SIGTERM)


def make_trainer(folder, callbacks=(), **args):
    """24 samples, 7 of which make no epoch of whole batches; dropout makes the random state matter."""
    model = make_model()
    model.model.thinking_projection = nn.Sequential(model.model.thinking_projection, nn.Dropout(0.3))
    defaults = {
        "max_steps": 7,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 3,
        "include_num_input_tokens_seen": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Resumable(
        model,
        TrainingArguments(str(folder), **(defaults | args)),
        train_dataset=make_data([1] * 18),
        eval_dataset=make_data([1] * 5),
        callbacks=[LogFileCallback(), *callbacks],
    )


@pytest.fixture
def make(tmp_path):
    return partial(make_trainer, tmp_path / "run")


def log(trainer):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in trainer.state.log_history]


def file_log(trainer):
    rows = read_jsonl(os.path.join(trainer.args.output_dir, "log.jsonl"))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same_run(resumed, whole):
    assert log(resumed) == log(whole)
    assert file_log(resumed) == file_log(whole)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters()):
        assert torch.equal(one, other)


BY_EPOCH = {"eval_strategy": "epoch", "logging_strategy": "epoch"}
ARGS = {
    "steps": {"eval_strategy": "steps", "eval_steps": 3},
    "epochs": BY_EPOCH,
    "share of an epoch": {"num_train_epochs": 1.4, "max_steps": -1, **BY_EPOCH},
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The trained trainer of some of `ARGS`."""

    @cache
    def train(kind):
        trainer = make_trainer(tmp_path_factory.mktemp("whole"), **ARGS[kind])
        trainer.train()
        return trainer

    return train


@pytest.mark.parametrize("step", [2, 4, 6, 7])
@pytest.mark.parametrize("kind", ["steps", "share of an epoch"])
def test_a_resumed_run_logs_what_the_whole_one_does(make, whole_run, tmp_path, step, kind):
    whole = whole_run(kind)
    shutil.copytree(whole.args.output_dir, tmp_path / "run")
    resumed = make(**ARGS[kind])
    output = resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert_same_run(resumed, whole)
    assert output.training_loss == output.metrics["train_loss"] == log(whole)[-1]["train_loss"]


@pytest.mark.parametrize("args", [{}, {"num_train_epochs": 1.0, "max_steps": -1}, {"max_steps": 5}])
def test_a_run_that_is_done_trains_nothing_more(make, args):
    make(**args).train()
    resumed = make(**args)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.trained == 0
    assert resumed.state.global_step == resumed.state.max_steps


def test_a_run_beyond_its_last_step_trains_nothing_more(make):
    make().train()
    resumed = make(max_steps=5)
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.trained, resumed.state.global_step) == (0, 7)


EVENTS = {
    "steps": [
        ("on_step_begin", 3),
        ("on_step_end", 3),
        ("on_prediction_step", 3),
        ("on_evaluate", 3),
        ("on_save", 4),
        ("on_step_end", 5),
        ("on_log", 6),
        ("on_step_end", 7),
    ],
    "epochs": [
        ("on_prediction_step", 5),
        ("on_step_end", 5),
        ("on_epoch_end", 5),
        ("on_save", 7),
        ("on_epoch_end", 7),
    ],
}


@pytest.mark.parametrize("kind, event, step", [(kind, *event) for kind, events in EVENTS.items() for event in events])
def test_a_run_that_sigterm_ended_goes_on_as_if_it_had_not(make, whole_run, kind, event, step):
    whole, args = whole_run(kind), ARGS[kind]
    with handle_sigterm(), pytest.raises(Terminated) as ended:
        make(callbacks=[Terminate(event, step)], **args).train()
    assert ended.value.code == 143
    checkpoint = last_whole_checkpoint(make().args.output_dir)
    assert int(checkpoint.rsplit("-", 1)[1]) in (step, step + 1)
    resumed = make(**args)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_run(resumed, whole)


def test_a_second_sigterm_ends_the_run_at_once(make, tmp_path, monkeypatch):
    monkeypatch.setattr(termination, "SAME_SECONDS", 0.0)

    class Twice(Terminate):
        def _send(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    with handle_sigterm(), pytest.raises(Terminated):
        make(callbacks=[Twice("on_substep_end", 0)], gradient_accumulation_steps=3).train()
    assert last_whole_checkpoint(tmp_path / "run") is None


def test_without_checkpoints_sigterm_ends_the_run_at_once(make):
    trainer = make(callbacks=[Terminate("on_substep_end", 3)], save_strategy="no")
    with handle_sigterm(), pytest.raises(Terminated):
        trainer.train()
    assert trainer.state.global_step == 3


def test_a_checkpoint_has_the_files_of_callbacks_before_it_has_its_name(make, tmp_path):
    trainer = make(callbacks=[OwnFile()])
    published = {}
    original = trainer.callback_handler.on_save

    def on_save(args, state, control):
        checkpoint = tmp_path / "run" / f"checkpoint-{state.global_step}"
        published[state.global_step] = (checkpoint / "own.txt").exists(), manifest_problem(checkpoint)
        return original(args, state, control)

    trainer.callback_handler.on_save = on_save
    trainer.train()
    assert published == dict.fromkeys((2, 4, 6, 7), (True, None))


def test_a_rotation_that_a_kill_cut_off_is_finished_when_the_run_goes_on(make, tmp_path):
    make(save_total_limit=2).train()
    shutil.copytree(tmp_path / "run/checkpoint-6", tmp_path / "run/checkpoint-4")
    make(save_total_limit=2).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-7"))
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]


def test_resuming_from_an_older_checkpoint_removes_none_before_the_next_is_saved(make, tmp_path):
    make(max_steps=6).train()
    trainer = make(save_total_limit=1, max_steps=3, save_steps=100, save_strategy="no")
    trainer.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert (tmp_path / "run/checkpoint-2").exists()


def test_changed_settings_are_named_in_one_line(make, caplog):
    make(max_steps=4).train()
    resumed = make(learning_rate=0.5, per_device_train_batch_size=3)
    resumed.train(resume_from_checkpoint=True)
    (line,) = [record.message for record in caplog.records if "other settings" in record.message]
    assert "`learning_rate` was 0.01 and is 0.5 (the checkpoint's stays in force)" in line
    assert "`per_device_train_batch_size` was 2 and is 3; `max_steps` was 4 and is 7" in line
    assert resumed.optimizer.param_groups[0]["initial_lr"] == 0.01


def test_another_optimizer_is_refused_by_name(make):
    make(max_steps=2).train()
    with pytest.raises(ValueError, match="`optim=adamw_torch.*`, whose state 'sgd'"):
        make(optim="sgd").train(resume_from_checkpoint=True)


def test_an_optimizer_state_of_other_parameters_is_refused(make):
    make(max_steps=2).train()
    frozen = make()
    frozen.model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="does not fit the parameters that are trained"):
        frozen.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")],
)
def test_a_full_disk_leaves_the_last_checkpoint_and_no_staging(make, tmp_path, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    trainer = make()
    trainer.add_callback(at_step(3, lambda: monkeypatch.setattr(torch, "save", full)))
    with pytest.raises(OSError, match=r"checkpoint-4` could not be written: .*checkpoint-2`"):
        trainer.train()
    assert last_whole_checkpoint(tmp_path / "run").endswith("checkpoint-2")
    assert not list(tmp_path.glob("run/_*"))


def at_step(step, action):
    class AtStep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                action()

    return AtStep()


def test_another_handler_of_sigterm_is_refused_before_it_is_installed(make):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="`enable_jit_checkpoint=True` would replace .* Leave it out"):
        make(enable_jit_checkpoint=True)
    assert signal.getsignal(signal.SIGTERM) == before
