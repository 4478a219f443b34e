"""Quantisation-aware training with torchao, beside quantisation after training with the same settings.

Prepare: each linear layer rounds its weights to the integer grid in its forward pass and lets the gradient through as
if it did not. Train. Convert: the weights are rounded for good. The grid is that of `IntxWeightOnlyConfig`, which runs
on CPU: symmetric integers of few bits with a scale for each group of weights in a row.

torchao's tensors hold the integers unpacked, one a byte; the bits a weight are what the format takes when packed.
"""

import torch
from torch import nn

from hf_evidenceflow.recipes.course.shared.recipe import require_course_package


def intx_config(bits: int, group_size: int):
    """
    The settings of the integer grid.

    Args:
        bits (`int`):
            Bits a weight, from 2 to 8.
        group_size (`int`):
            Weights of a row that share a scale.

    Returns:
        [`torchao.quantization.IntxWeightOnlyConfig`].

    Raises:
        `ValueError`: if `bits` is out of its range.
        `ImportError`: if torchao is not installed.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"`bits` must be from 2 to 8, got {bits}.")
    quantization = require_course_package("torchao", "Quantisation-aware training").quantization
    dtype = getattr(torch, f"int{bits}")
    granularity = quantization.PerGroup(group_size)
    return quantization.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)


def quantize_intx(model: nn.Module, bits: int, group_size: int) -> nn.Module:
    """
    Round the weights of a model's linear layers after training, in place. The readout is left.

    Args:
        model (`nn.Module`):
            The model.
        bits, group_size (`int`):
            As in [`intx_config`].

    Returns:
        `nn.Module`: the model.

    Raises:
        `ValueError`: if a layer's inputs are no whole number of groups.
    """
    config = intx_config(bits, group_size)
    _check_groups(model, group_size)
    require_course_package("torchao", "Quantisation").quantization.quantize_(model, config, filter_fn=_is_quantised)
    return model


def prepare_qat(model: nn.Module, bits: int, group_size: int) -> nn.Module:
    """
    Let a model's linear layers round their weights in each forward pass, in place; then train it.

    Args:
        model, bits, group_size:
            As in [`quantize_intx`].

    Returns:
        `nn.Module`: the model.
    """
    config = intx_config(bits, group_size)
    _check_groups(model, group_size)
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    quantize_(model, QATConfig(config, step="prepare"), filter_fn=_is_quantised)
    return model


def convert_qat(model: nn.Module, bits: int, group_size: int) -> nn.Module:
    """
    Round the weights of a prepared model for good, in place.

    Args:
        model, bits, group_size:
            As in [`prepare_qat`].

    Returns:
        `nn.Module`: the model. It computes what the prepared one did.
    """
    config = intx_config(bits, group_size)
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    quantize_(model, QATConfig(config, step="convert"))
    return model


def _is_quantised(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] != "lm_head"


def _check_groups(model: nn.Module, group_size: int) -> None:
    for name, module in model.named_modules():
        if _is_quantised(module, name) and (group_size < 1 or module.in_features % group_size):
            raise ValueError(
                f"`{name}` has {module.in_features} inputs, which are no whole number of groups of {group_size}. Take "
                "another `group_size`."
            )
