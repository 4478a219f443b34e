"""The error of three sets of 4-bit values, on normal random weights and on those of a trained model."""

import torch
from torch import nn

from hf_evidenceflow.recipes.course.compression.nf4 import (
    dequantize_blockwise,
    nf4_codebook,
    quantize_blockwise,
    relative_error,
    uniform_int4_codebook,
)
from hf_evidenceflow.recipes.course.shared.recipe import require_course_package


def four_bit_codebooks() -> dict[str, torch.Tensor]:
    """
    The values of NF4, of FP4 as bitsandbytes has it, and of symmetric int4.

    Returns:
        `dict[str, torch.Tensor]`: by name, rising.

    Raises:
        `ImportError`: if bitsandbytes is not installed.
    """
    functional = require_course_package("bitsandbytes", "FP4").functional
    fp4 = functional.get_4bit_type("fp4", device="cpu").unique()  # sorted; the two zeros are one
    return {"NF4": nf4_codebook(), "FP4": fp4, "int4": uniform_int4_codebook()}


def linear_weights(model: nn.Module, block_size: int = 64) -> torch.Tensor:
    """The weights of a model's linear layers, apart from the readout, in whole blocks: float32 of shape `(N,)`."""
    weights = torch.cat(
        [
            module.weight.detach().flatten().float().cpu()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] != "lm_head"
        ]
    )
    return weights[: len(weights) // block_size * block_size]


def weight_errors(model: nn.Module, seed: int = 0, block_size: int = 64) -> dict[str, dict[str, float]]:
    """
    Relative error of each set of values, in blocks with a scale each.

    Args:
        model (`nn.Module`):
            Model whose linear layers, apart from the readout, are the trained weights.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random weights, as many as there are trained ones.
        block_size (`int`, *optional*, defaults to `64`):
            Weights a scale. What is left over at the end is not counted.

    Returns:
        `dict[str, dict[str, float]]`: `normal` and `trained` by the name of the values.
    """
    trained = linear_weights(model, block_size)
    normal = torch.randn(len(trained), generator=torch.Generator().manual_seed(seed))
    errors = {}
    for name, codebook in four_bit_codebooks().items():
        errors[name] = {}
        for kind, weights in (("normal", normal), ("trained", trained)):
            codes, scales = quantize_blockwise(weights, codebook, block_size)
            errors[name][kind] = relative_error(weights, dequantize_blockwise(codes, scales, codebook, weights.shape))
    return errors
