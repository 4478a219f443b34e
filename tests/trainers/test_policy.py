"""HRPOTrainer by path: the policy thinks, and reward and reference models are loaded as TRL loads them."""

import inspect

import pytest
import torch
from datasets import Dataset
from quiet_training import STEP_BY_STEP
from transformers import Qwen2ForCausalLM, Qwen2ForSequenceClassification
from trl import GRPOTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, ThinkingQwen2ForCausalLM, load_thinking_model


@pytest.fixture(scope="module")
def reward_folder(plain_checkpoint, tokenizer, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("reward"))
    torch.manual_seed(1)
    Qwen2ForSequenceClassification.from_pretrained(plain_checkpoint, num_labels=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


async def judge(completions, **kwargs):
    return [float(len(text) % 3) for text in completions]


def make(model, output, reward_funcs, **settings):
    settings = {"thinking_mode": "embedding", **settings}
    mode = settings.pop("thinking_mode")
    args = HRPOConfig(
        str(output),
        **STEP_BY_STEP,
        per_device_train_batch_size=4,
        max_steps=2,
        max_completion_length=5,
        temperature=1.0,
        save_strategy="no",
        learning_rate=1e-2,
        model_init_kwargs={"thinking_mode": mode, "dtype": "float32"} if isinstance(model, str) else None,
        **settings,
    )
    return HRPOTrainer(model, reward_funcs, args, Dataset.from_list([{"prompt": text} for text in ("ab", "7+") * 8]))


def test_paths_of_policy_and_reward_model_go_together(plain_checkpoint, reward_folder, tmp_path, caplog):
    trainer = make(plain_checkpoint, tmp_path, [reward_folder, judge], beta=0.0)
    assert trainer.model.config.thinking_mode == "embedding"
    assert type(trainer.reward_funcs[0]) is Qwen2ForSequenceClassification
    trainer.train()
    rewards = trainer.state.log_history[0]
    assert [name for name in rewards if name.startswith("rewards/judge")] and rewards["reward"] != 0
    assert trainer.args.model_init_kwargs == {"thinking_mode": "embedding", "dtype": "float32"}
    assert "will be ignored" not in caplog.text


def test_a_reward_model_may_be_given_loaded(plain_checkpoint, reward_folder, tmp_path):
    reward = Qwen2ForSequenceClassification.from_pretrained(reward_folder)
    trainer = make(plain_checkpoint, tmp_path, reward, beta=0.0)
    trainer.train()
    assert trainer.state.log_history[0]["reward"] != 0


def test_the_arguments_are_those_of_trl():
    expected, found = (list(inspect.signature(trainer.__init__).parameters) for trainer in (GRPOTrainer, HRPOTrainer))
    assert found == expected


@pytest.mark.parametrize("thinks", [False, True])
def test_a_reference_is_kept_in_step_with_the_policy(plain_checkpoint, tokenizer, tmp_path, thinks):
    """Also a plain one, which has no thinking modules."""
    path = plain_checkpoint
    if thinks:
        path = str(tmp_path / "thinking")
        load_thinking_model(plain_checkpoint).save_pretrained(path)
        tokenizer.save_pretrained(path)
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    trainer = make(path, tmp_path / "out", judge, beta=0.1, **sync)
    assert type(trainer.ref_model) is (ThinkingQwen2ForCausalLM if thinks else Qwen2ForCausalLM)
    policy = dict(trainer.model.named_parameters())
    before = policy["model.embed_tokens.weight"].clone()
    trainer.train()
    for name, parameter in trainer.ref_model.named_parameters():
        assert torch.equal(parameter, policy[name]), name
    assert not torch.equal(before, policy["model.embed_tokens.weight"])
