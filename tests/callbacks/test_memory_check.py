from dataclasses import replace

import pytest
from datasets import Dataset
from quiet_training import QUIET
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.callbacks import memory_check
from hf_evidenceflow.callbacks.memory_check import fitting_load, refusal
from hf_evidenceflow.trainers.step_memory import ModelCosts, StepLoad, step_memory


COSTS = ModelCosts(
    layer=1e6, outside=1e3, layers=10, states=1e4, cached=1e4, records=0, logits=4, tile=0, gradients=0, optimizer=0
)
LOAD = StepLoad(
    update_rows=32,
    decoded_rows=32,
    generated_rows=32,
    group=4,
    prompt=100,
    completion=99,
    pass_tokens=8192,
    checkpointed=False,
)


def test_checkpointing_alone_is_proposed_where_it_is_enough():
    fitting = fitting_load(COSTS, LOAD, 8e9)
    assert fitting == replace(LOAD, checkpointed=True)


def test_the_most_rows_that_fit_are_proposed_next():
    load = replace(LOAD, checkpointed=True)
    fitting = fitting_load(COSTS, load, 3.5e9)
    assert fitting.update_rows == 16 and step_memory(COSTS, fitting).peak <= 3.5e9


def test_a_rollout_that_is_too_large_decodes_fewer_rows():
    costs = replace(COSTS, cached=1e6, layer=1e3, states=1)
    fitting = fitting_load(costs, replace(LOAD, checkpointed=True), 2.5e9)
    assert fitting.decoded_rows == 16 and fitting.update_rows == 32


def test_nothing_is_proposed_where_no_row_fits():
    assert fitting_load(COSTS, LOAD, 1e6) is None
    assert "Not even a single row fits" in refusal(COSTS, LOAD, 1e6)


def test_the_refusal_names_the_settings_and_those_that_fit():
    text = refusal(COSTS, LOAD, 3.5e9)
    assert "`per_device_train_batch_size=32`" in text and "`max_completion_length=99`" in text
    assert "`gradient_checkpointing=True` and `per_device_train_batch_size=16` and 2 times the" in text
    assert "`check_memory=False`" in text


@pytest.fixture
def trainer(plain_checkpoint, tmp_path):
    def make(**overrides):
        args = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 5, "max_steps": 1}
        return HRPOTrainer(
            load_thinking_model(plain_checkpoint),
            lambda completions, **kwargs: [float(len(text)) for text in completions],
            args=HRPOConfig(str(tmp_path), save_strategy="no", beta=0.0, **(QUIET | args | overrides)),
            train_dataset=Dataset.from_dict({"prompt": ["Tom has 3", "Ann?"] * 4}),
            processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
        )

    return make


def test_what_does_not_fit_is_refused_before_the_first_rollout(trainer, monkeypatch):
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 1000)
    trainer = trainer()
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *args, **kwargs: pytest.fail("a rollout"))
    with pytest.raises(ValueError, match=r"A step would take about .* GB, and there is room for 0.0 GB"):
        trainer.train()


def test_the_check_can_be_switched_off(trainer, monkeypatch):
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 1000)
    trainer = trainer(check_memory=False)
    trainer.train()
    assert trainer.memory_check.estimate is None and trainer.state.global_step == 1


def test_the_estimate_is_said_and_kept(trainer):
    trainer = trainer()
    trainer.train()
    assert trainer.memory_check.estimate.peak > 0 and trainer.memory_check.held > 50e6
    assert trainer.memory_check.description.startswith("A step takes ")


def test_processes_on_a_cpu_share_its_memory(trainer, monkeypatch):
    trainer = trainer()
    trainer.create_optimizer()
    check = trainer.memory_check
    check.on_train_begin(trainer.args, None, None)
    monkeypatch.setattr(memory_check, "free_memory", lambda device: int(check.estimate.peak) + 1)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 4)
    with pytest.raises(ValueError, match="would take"):
        check.on_train_begin(trainer.args, None, None)
