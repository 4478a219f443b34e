"""Models of ours in TRL's own trainers: by path, and with the reference model that TRL builds."""

import json

import pytest
import torch
from datasets import Dataset
from tiny_models import TINY
from tiny_tinyseek import tiny_tinyseek
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import create_model_from_path

from hf_evidenceflow import (
    AblationLlamaConfig,
    AblationLlamaForCausalLM,
    CrossLayerLlamaConfig,
    CrossLayerLlamaForCausalLM,
    ThinkingLlamaConfig,
    ThinkingLlamaForCausalLM,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
    ThinkingQwen3Config,
    ThinkingQwen3ForCausalLM,
    load_thinking_model,
)


MODELS = {
    "thinking_qwen2": lambda: ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY)),
    "thinking_qwen3": lambda: ThinkingQwen3ForCausalLM(ThinkingQwen3Config(**TINY, head_dim=6)),
    "thinking_llama": lambda: ThinkingLlamaForCausalLM(ThinkingLlamaConfig(**TINY)),
    "tinyseek": tiny_tinyseek,
    "crosslayer": lambda: CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant="v2m1")),
    "ablation": lambda: AblationLlamaForCausalLM(AblationLlamaConfig(**TINY)),
}


@pytest.mark.parametrize("family", MODELS)
def test_trl_loads_it_by_path(family, tmp_path):
    model = MODELS[family]()
    model.save_pretrained(tmp_path)
    assert "AutoModelForCausalLM" not in json.loads((tmp_path / "config.json").read_text()).get("auto_map", {})
    assert type(create_model_from_path(str(tmp_path))) is type(model)


@pytest.mark.parametrize("family", MODELS)
def test_checkpointing_asked_for_in_the_config_is_on(family):
    config = MODELS[family]().config
    config.gradient_checkpointing = True
    model = type(MODELS[family]())(config)
    assert model.is_gradient_checkpointing or not model.supports_gradient_checkpointing


@pytest.fixture
def thinking_folder(plain_checkpoint, tokenizer, tmp_path):
    folder = str(tmp_path / "thinking")
    load_thinking_model(plain_checkpoint).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ARGUMENTS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "disable_tqdm": True,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "learning_rate": 1e-2,
}
PAIRS = Dataset.from_list([{"prompt": "ab", "chosen": "cd", "rejected": "ef"}] * 4)


@pytest.mark.slow
def test_sft_by_path_trains_a_thinking_model(thinking_folder, tmp_path):
    args = SFTConfig(str(tmp_path), max_length=16, **ARGUMENTS)
    trainer = SFTTrainer(thinking_folder, args=args, train_dataset=Dataset.from_list([{"text": "abcd"}] * 4))
    trainer.train()
    assert type(trainer.model) is ThinkingQwen2ForCausalLM


@pytest.mark.slow
@pytest.mark.parametrize("sync", [False, True])
def test_the_reference_that_trl_builds_begins_as_the_policy(thinking_folder, tokenizer, sync, tmp_path):
    model = load_thinking_model(thinking_folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dpo = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path), max_length=16, sync_ref_model=sync, ref_model_sync_steps=1, **ARGUMENTS),
        train_dataset=PAIRS,
        processing_class=tokenizer,
    )
    assert type(dpo.ref_model) is ThinkingQwen2ForCausalLM
    dpo.train()
    same = all(torch.equal(tensor, before[name]) for name, tensor in dpo.ref_model.state_dict().items())
    assert same != sync


@pytest.mark.slow
def test_grpo_with_a_reference_logs_its_divergence(thinking_folder, tokenizer, tmp_path):
    args = GRPOConfig(str(tmp_path), beta=0.1, num_generations=2, max_completion_length=3, **ARGUMENTS)
    model = load_thinking_model(thinking_folder)
    data = Dataset.from_list([{"prompt": "ab"}] * 4)
    trainer = GRPOTrainer(
        model, lambda completions, **kwargs: [0.0, 1.0], args=args, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    assert type(trainer.ref_model) is ThinkingQwen2ForCausalLM
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
