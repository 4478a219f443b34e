"""A tiny checkpoint of each family that users load on the first day, plain or of text and images."""

import pytest
import torch
from tiny_models import TINY
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_evidenceflow.models.tiny_config import tiny_config


DAY_ONE = ("qwen2", "llama", "qwen3", "qwen3_5_text", "gemma3_text", "gemma4_text", "smollm3", "lfm2", "mistral")
DAY_ONE += ("phi3", "olmo3", "granite", "qwen3_moe", "gpt_oss", "looped_llama")
# Scaled embeddings and sliding windows, a state of its own, experts, loops
FAST = ("gemma3_text", "lfm2", "qwen3_moe", "looped_llama")
each_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in DAY_ONE]
)
# Gates wide open, so that a state that is fused or not changes the logits
SETTINGS = {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1, "thinking_count": 3}
SETTINGS |= {"thinking_placeholder_id": 5}


def plain_config(family):
    if family == "looped_llama":
        loops = {"num_loops": 3, "loop_blocks": [[1, 3]], "loop_norm": True, "sandwich_norm": True}
        exits = {"exit_gate": True, "early_exit_threshold": 0.7}
        return CONFIG_MAPPING[family](**TINY, **loops, **exits)
    config = tiny_config(CONFIG_MAPPING[family]())
    config.vocab_size = TINY["vocab_size"]
    if family == "gemma4_text":
        config.vocab_size_per_layer_input = TINY["vocab_size"]
    if family == "granite":
        config.embedding_multiplier, config.logits_scaling = 3.0, 2.0
    return config


def save_plain(family, tokenizer, folder):
    """Saves a random plain model of a family and the tokenizer; returns the model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(plain_config(family)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
