"""Cross-layer models whose own parameters are away from their initial values, as after training."""

import torch
from tiny_models import TINY

from hf_evidenceflow import CrossLayerLlamaConfig, CrossLayerLlamaForCausalLM, extra_parameters


def moved_model(variant, implementation="sdpa", **fields):
    torch.manual_seed(7)
    config = CrossLayerLlamaConfig(**{**TINY, "initializer_range": 0.2, **fields}, variant=variant)
    config._attn_implementation = implementation
    model = CrossLayerLlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in extra_parameters(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model
