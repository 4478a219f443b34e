"""Plain models for the rollout tests."""

import torch
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


def make_plain(family="qwen2"):
    """A plain model that is sure of its tokens and ends rows at different steps."""
    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(**TINY)) if family == "qwen2" else LlamaForCausalLM(LlamaConfig(**TINY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model.lm_head.weight[TINY["eos_token_id"]] *= 2
    return model.eval()
