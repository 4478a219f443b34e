from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from quiet_training import QUIET
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.trainers.step_memory import ModelCosts, StepLoad, model_costs, step_load, step_memory


COSTS = ModelCosts(
    layer=100, outside=7, layers=3, states=10, cached=5, records=2, logits=4, tile=50, gradients=11, optimizer=22
)
LOAD = StepLoad(
    update_rows=4,
    decoded_rows=8,
    generated_rows=8,
    group=4,
    prompt=6,
    completion=9,
    pass_tokens=None,
    checkpointed=False,
)


@pytest.fixture
def make_trainer(plain_checkpoint, tmp_path):
    def make(mode="projection", peft_config=None, **overrides):
        args = QUIET | {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 7}
        return HRPOTrainer(
            load_thinking_model(plain_checkpoint, thinking_mode=mode),
            lambda completions, **kwargs: [float(len(text)) for text in completions],
            args=HRPOConfig(str(tmp_path), **(args | overrides)),
            train_dataset=Dataset.from_dict({"prompt": ["Tom has 3", "Ann?"] * 4}),
            processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
            peft_config=peft_config,
        )

    return make


def test_positions_are_those_of_completions_and_of_each_groups_prompt():
    assert LOAD.positions(4) == 6 + 4 * 10
    assert LOAD.positions(5) == 2 * 6 + 5 * 10


def test_the_update_holds_all_activations_of_its_rows():
    records = 3 * 2 * 8 * 9
    assert step_memory(COSTS, LOAD).update == records + (3 * 100 + 7) * 46 + 0.5 * 100 * 46 + 11


def test_checkpointed_it_holds_inputs_of_layers_and_one_layer_of_a_pass():
    load = replace(LOAD, checkpointed=True, pass_tokens=20)
    records = 3 * 2 * 8 * 9
    assert step_memory(COSTS, load).update == records + (3 * 10 + 7) * 46 + 1.5 * 100 * 20 + 11


def test_the_rollout_holds_keys_of_the_rows_decoded_at_once():
    fewer = replace(LOAD, decoded_rows=4)
    assert step_memory(COSTS, LOAD).rollout - step_memory(COSTS, fewer).rollout == 5 * 46 + 100 * 6


def test_the_peak_is_the_larger_of_rollout_and_update_with_the_optimizer():
    memory = step_memory(COSTS, LOAD)
    assert memory.peak == 22 + memory.update > memory.rollout


def started(trainer):
    trainer.create_optimizer()
    return trainer


def test_keys_of_a_position_are_counted(make_trainer):
    trainer = started(make_trainer())
    config = trainer.model.config
    head_size = config.hidden_size // config.num_attention_heads
    expected = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * 4
    assert model_costs(trainer).cached == expected


def test_layers_are_counted_and_hold_more_than_their_inputs(make_trainer):
    trainer = started(make_trainer())
    costs = model_costs(trainer)
    assert costs.layers == trainer.model.config.num_hidden_layers
    assert costs.states == 4 * trainer.model.config.hidden_size < costs.layer / 5


def test_thinking_costs_outside_of_the_layers(make_trainer):
    assert model_costs(started(make_trainer())).outside > model_costs(started(make_trainer("none"))).outside


def test_an_adapter_needs_less_for_gradients_and_optimizer(make_trainer):
    full, adapter = (model_costs(started(make_trainer(peft_config=config))) for config in (None, LoraConfig(r=2)))
    assert adapter.gradients < full.gradients / 2 and adapter.optimizer == 2 * adapter.gradients


def test_measuring_leaves_mode_gradients_and_random_numbers_alone(make_trainer):
    trainer = started(make_trainer())
    trainer.model.train()
    random = torch.get_rng_state()
    model_costs(trainer)
    assert all(module.training for module in trainer.model.modules())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert torch.equal(random, torch.get_rng_state()) and trainer._thinking is None


def test_the_load_has_the_longest_prompt_and_the_rows_of_the_settings(make_trainer):
    trainer = make_trainer(gradient_accumulation_steps=3, rollout_max_rows=5)
    load = step_load(trainer)
    assert (load.update_rows, load.generated_rows, load.decoded_rows) == (4, 12, 5)
    assert load.prompt == len(trainer._tokenizer("Tom has 3")["input_ids"]) and load.checkpointed
