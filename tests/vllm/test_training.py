"""HRPOTrainer with rollouts on vLLM in its own process, `use_vllm=True, vllm_mode="colocate"`."""

import pytest
import torch


pytest.importorskip("vllm")

import engines
from datasets import Dataset
from peft import LoraConfig
from quiet_training import STEP_BY_STEP
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model


pytestmark = pytest.mark.slow


def letters_reward(completions, **kwargs):
    return [float(sum(char in "abcdefgh" for char in text)) for text in completions]


@pytest.fixture
def make_trainer(checkpoint, tmp_path):
    made = []

    def make(peft_config=None, mode="projection", fields=None, family="qwen2", **overrides):
        args = {
            "output_dir": str(tmp_path / "out"),
            **STEP_BY_STEP,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 3,
            "max_completion_length": 9,
            "temperature": 0.9,
            "save_strategy": "no",
            "parity_check_steps": 1,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "lr_scheduler_type": "constant",
            "beta": 0.0,
            "seed": 3,
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_max_model_length": 64,
            "vllm_engine_kwargs": engines.ON_CPU,
        }
        folder = checkpoint(family)
        prompts = [{"prompt": text} for text in ("Tom has 3", "Ann?", "7+2=", "abc", "d") * 4]
        trainer = HRPOTrainer(
            load_thinking_model(folder, thinking_mode=mode, dtype=torch.float32, **(fields or {})),
            letters_reward,
            args=HRPOConfig(**{**args, **overrides}),
            train_dataset=Dataset.from_list(prompts),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=peft_config,
        )
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        engines.close(trainer.vllm_generation.llm)


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("family", engines.FAMILIES)
def test_log_probabilities_of_rollouts_are_those_of_the_training_forward(make_trainer, family):
    trainer = make_trainer(family=family)
    trainer.train()
    gaps = history(trainer, "thinking/parity_gap")
    assert len(gaps) == 3 and max(gaps) <= 1e-4
    assert max(history(trainer, "sampling/sampling_logp_difference/max")) <= 1e-4
    assert 0 < history(trainer, "thinking/gate_mean")[0] < 1
    assert history(trainer, "thinking/token_share")[0] > 0.9
    records = trainer.vllm_generation.model_state.records
    assert not records.live and not records.left


def test_states_of_another_token_stop_the_run(make_trainer, monkeypatch):
    from hf_evidenceflow.integrations.vllm.rollouts import ThinkingVLLMGeneration

    rollout = ThinkingVLLMGeneration.rollout

    def shifted(self, *args):
        result = rollout(self, *args)
        result.states = result.states.roll(1, dims=1)
        return result

    monkeypatch.setattr(ThinkingVLLMGeneration, "rollout", shifted)
    with pytest.raises(RuntimeError, match="Parity check failed at step 0"):
        make_trainer().train()


def test_an_adapter_and_its_thinking_modules_reach_the_engine(make_trainer):
    trainer = make_trainer(peft_config=LoraConfig(r=3))
    trainer.train()
    assert max(history(trainer, "thinking/parity_gap")) <= 1e-4


def test_idle_thoughts_do_not_enter_the_correction_of_the_engine(make_trainer):
    trainer = make_trainer(mode="soft")
    trainer.train()
    assert max(history(trainer, "sampling/sampling_logp_difference/max")) <= 1e-4


def test_mode_none_is_grpo_on_the_same_path(make_trainer):
    trainer = make_trainer(mode="none")
    trainer.train()
    assert max(history(trainer, "sampling/sampling_logp_difference/max")) <= 1e-4
    assert not history(trainer, "thinking/parity_gap")


def test_a_cut_distribution_trains_without_the_check(make_trainer):
    trainer = make_trainer(top_p=0.8)
    trainer.train()
    assert not history(trainer, "thinking/parity_gap")
