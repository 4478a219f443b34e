"""Outlier features for a model that is too small to have grown any, without a change of what it computes.

Large language models have a few hidden features of very large magnitude. A norm's weight times c in one channel, and
the matching columns of the linear layers behind it divided by c, give the same function with such a feature between.
"""

import torch
from torch import nn


# By the norm's name in a layer: the linear layers that read its output, and nothing else does
_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


@torch.no_grad()
def plant_outliers(model: nn.Module, factor: float, channels: int = 2, seed: int = 0) -> nn.Module:
    """
    Give every layer outlier features, in place.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A decoder with the module names of Llama, such as Llama, Mistral or Qwen2.
        factor (`float`):
            What the features are multiplied with, above 0. 1 changes nothing.
        channels (`int`, *optional*, defaults to `2`):
            Features; the same ones in all layers, as in large models.
        seed (`int`, *optional*, defaults to `0`):
            Seed of their choice.

    Returns:
        `nn.Module`: the model.

    Raises:
        `ValueError`: if the factor is not positive, there are fewer channels than asked for, or the model has other
            module names.
    """
    if not factor > 0:
        raise ValueError(f"`factor` must be above 0, got {factor}.")
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not layers or not all(hasattr(layers[0], name) for name in ("self_attn", "mlp", *_READERS)):
        raise ValueError(
            f"Outliers can be planted in models with Llama's module names; {type(model).__name__} has others. Set "
            "`outlier_factor` to 1 to go without."
        )
    width = layers[0].input_layernorm.weight.numel()
    if not 1 <= channels <= width:
        raise ValueError(f"`channels` must be from 1 to the {width} of the model, got {channels}.")
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:channels]
    for layer in layers:
        for norm, readers in _READERS.items():
            layer.get_submodule(norm).weight[chosen] *= factor
            for reader in readers:
                layer.get_submodule(reader).weight[:, chosen] /= factor
    return model
