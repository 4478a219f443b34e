"""What a quantised model takes: bytes of the tensors that it really holds, and bits for each weight of its layers."""

import torch
from torch import nn

from hf_evidenceflow.recipes.course.compression.int8_outliers import Int8Linear


def tensor_bytes(tensor: torch.Tensor) -> int:
    """
    Bytes of a tensor with all that belongs to it.

    Args:
        tensor (`torch.Tensor`):
            A plain tensor, 4-bit weights of bitsandbytes with their scales, or integer weights of torchao with theirs.
            The table of the 256 values of 8-bit scales, a constant of bitsandbytes, is not counted.

    Returns:
        `int`: bytes.
    """
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        parts = [tensor.data, state.absmax]
        parts += [state.state2.absmax, state.offset] if state.nested else []
    elif hasattr(tensor, "qdata"):
        parts = [tensor.qdata, tensor.scale, tensor.zero_point]
    else:
        parts = [tensor]
    return sum(part.numel() * part.element_size() for part in parts)


def model_bytes(model: nn.Module) -> int:
    """
    Bytes of the parameters and buffers of a model; one that is shared counts once.

    Args:
        model (`nn.Module`):
            The model.

    Returns:
        `int`: bytes.
    """
    return sum(tensor_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


def linear_bits(model: nn.Module, skip: tuple[str, ...] = ("lm_head",)) -> float:
    """
    Bits for each weight of the linear layers, scales included, measured on the tensors.

    Args:
        model (`nn.Module`):
            The model, before its first pass: on some CPUs bitsandbytes repacks its weights then.
        skip (`tuple[str, ...]`, *optional*, defaults to `("lm_head",)`):
            Last part of the names of layers that are left out.

    Returns:
        `float`: bits. The floating-point copy in [`Int8Linear`] is not counted, as only its outlier columns are used.

    Raises:
        `ValueError`: if there is no linear layer.
    """
    size = weights = 0
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in skip:
            continue
        if isinstance(module, Int8Linear):
            size += tensor_bytes(module.codes) + tensor_bytes(module.largest)
            weights += module.codes.numel()
        elif isinstance(module, nn.Linear):
            size += tensor_bytes(module.weight)
            weights += module.in_features * module.out_features
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear layer to measure.")
    return 8 * size / weights
