"""Checks that every trainer of rollouts passes with whatever it is combined with, in a step or two of training."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig


PROMPTS = ["Tom has 3", "Ann?", "7+2=", "abc", "d"] * 4


def letters(completions, **kwargs):
    """Rewards that differ between texts."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [float(sum(map(ord, text)) % 11) for text in texts]


def nothing(completions, **kwargs):
    return [None] * len(completions)


def every_second(completions, **kwargs):
    return [1.0 if index % 2 else None for index in range(len(completions))]


async def later(completions, **kwargs):
    return letters(completions)


def with_extra_logs(completions, log_extra=None, log_metric=None, **kwargs):
    log_extra("length", [len(text) for text in completions])
    log_metric("share", 0.5)
    return letters(completions)


REWARDS = {
    "two weighted ones": ([letters, later], {"reward_weights": [0.7, 0.3]}),
    "one that gives none": ([letters, nothing], {}),
    "one that gives some": ([every_second, letters], {}),
    "an asynchronous one": (later, {}),
    "one with logs of its own": (with_extra_logs, {"log_completions": True}),
    "a reward model": ("reward model", {}),
}
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
EVALUATION = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
SETTINGS = {
    "truncated sampling": {"top_p": 0.9, "top_k": 10, "min_p": 0.01, "repetition_penalty": 1.1},
    "other generation settings": {"generation_kwargs": {"typical_p": 0.9}},
    "static cache": {"cache_implementation": "static"},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "evaluation": EVALUATION,
    "prompts in order": {"shuffle_dataset": False},
    "padding to a multiple": {"pad_to_multiple_of": 8},
    "no dropout": {"disable_dropout": True},
}
GRPO_SETTINGS = {
    **{name: {"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")},
    "sequence ratios": {"importance_sampling_level": "sequence"},
    "two iterations": {"num_iterations": 2, "gradient_accumulation_steps": 2},
    "two-sided clipping": {"num_iterations": 2, "delta": 2.0, "epsilon_high": 0.28},
    "advantages as they are": {"scale_rewards": "none"},
    "advantages of a batch": {"scale_rewards": "batch"},
    "uncertain tokens only": {"top_entropy_quantile": 0.5},
    "masked truncated completions": {"mask_truncated_completions": True, "max_completion_length": 40},
    "off-policy mask": {"num_iterations": 2, "off_policy_mask_threshold": 0.5},
    "synced reference": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
    "unbiased divergence": {"beta": 0.1, "use_bias_correction_kl": True},
}


class RolloutTrainerChecks:
    """To be mixed in with a fixture `make(reward, dataset, peft_config, **settings)` of a trainer."""

    def run(self, make, reward=letters, dataset=None, peft_config=None, **settings):
        dataset = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]) if dataset is None else dataset
        trainer = make(reward, dataset, peft_config, **settings)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
        after = dict(trainer.model.named_parameters())
        assert any(not torch.equal(after[name], old) for name, old in before.items())
        return trainer

    @pytest.mark.parametrize("kind", REWARDS)
    def test_it_trains_with_the_rewards(self, make, kind):
        reward, settings = REWARDS[kind]
        self.run(make, reward, **settings)

    @pytest.mark.parametrize("kind", SETTINGS)
    def test_it_trains_with(self, make, kind):
        self.run(make, **SETTINGS[kind])

    def test_it_trains_on_chats(self, make):
        rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
        self.run(make, dataset=Dataset.from_list(rows))

    def test_it_trains_on_a_stream(self, make):
        rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
        self.run(make, dataset=rows.to_iterable_dataset())

    @pytest.mark.parametrize("settings", [{}, {"beta": 0.1}, {"gradient_checkpointing": True}], ids=str)
    def test_it_trains_an_adapter(self, make, settings):
        trainer = self.run(make, peft_config=LoraConfig(**LORA), **settings)
        assert trainer.model.peft_config["default"].r == 2
