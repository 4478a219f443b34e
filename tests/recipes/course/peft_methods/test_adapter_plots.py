"""Soft prompts and LoRA's matrices as they are read off a model and drawn."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.recipes.course.peft_methods.adapter_plots import (
    SoftPrompt,
    adapter_rows,
    lora_weights,
    plot_adapters,
    soft_prompt,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY))


def test_a_soft_prompt_is_its_virtual_tokens_and_a_copy(model):
    assert soft_prompt(model) is None
    config = PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="RANDOM", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    start = soft_prompt(tuned)
    next(parameter for parameter in tuned.parameters() if parameter.requires_grad).data += 1
    assert start.shape == (3, TINY["hidden_size"])
    torch.testing.assert_close(soft_prompt(tuned), start + 1)


def test_loras_b_is_zero_at_first_and_both_are_drawn(model, tmp_path):
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    matrices = lora_weights(tuned)
    assert not matrices["B"].any() and matrices["A"].any()
    words = torch.randn(9, 5)
    prompts = {"soft prompt": SoftPrompt(torch.randn(3, 5), torch.randn(3, 5))}
    matrices["B"] = matrices["B"] + 0.1 * torch.randn(len(matrices["B"]))
    assert plot_adapters(adapter_rows(words, prompts, matrices), tmp_path / "adapters.png").exists()
    assert plot_adapters(adapter_rows(words, {}, {}), tmp_path / "none.png") is None
