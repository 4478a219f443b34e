"""HRPOTrainer and PPOTrainer with the settings of GRPO that they take over."""

import pytest
import torch
from tiny_models import TINY
from trainer_checks import GRPO_SETTINGS, RolloutTrainerChecks
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

from hf_evidenceflow import HRPOConfig, HRPOTrainer
from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import PPOTrainer


pytestmark = pytest.mark.slow
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "max_completion_length": 6,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "learning_rate": 1e-2,
    "seed": 3,
}


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, tokenizer):
    path = str(tmp_path_factory.mktemp("reward-model"))
    torch.manual_seed(1)
    Qwen2ForSequenceClassification(Qwen2Config(**TINY, num_labels=1)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class TrainerChecks(RolloutTrainerChecks):
    trainer_class = config_class = None
    settings = {}

    @pytest.fixture
    def make(self, plain_checkpoint, reward_model, tmp_path):
        def make(reward, dataset, peft_config, **settings):
            tokenizer = AutoTokenizer.from_pretrained(plain_checkpoint)
            tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
            return self.trainer_class(
                plain_checkpoint,
                reward_model if reward == "reward model" else reward,
                args=self.config_class(str(tmp_path), **{**COMMON, **self.settings, **settings}),
                train_dataset=dataset,
                eval_dataset=dataset if "eval_strategy" in settings else None,
                processing_class=tokenizer,
                peft_config=peft_config,
            )

        return make


class TestHRPO(TrainerChecks):
    trainer_class, config_class = HRPOTrainer, HRPOConfig
    settings = {"num_generations": 4, "beta": 0.0, "model_init_kwargs": {"dtype": "float32"}}

    @pytest.mark.parametrize("kind", GRPO_SETTINGS)
    def test_it_trains_with_the_setting_of_grpo(self, make, kind):
        self.run(make, **GRPO_SETTINGS[kind])


class TestPPO(TrainerChecks):
    trainer_class, config_class = PPOTrainer, PPOConfig
    settings = {"beta": 0.0, "model_init_kwargs": {"dtype": "float32"}}
