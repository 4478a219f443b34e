"""How far int8 products are from the floating-point ones, on the activations that a model really has."""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from hf_evidenceflow.recipes.course.compression.int8_outliers import (
    Int8Linear,
    int8_linear,
    outlier_columns,
    quantize_vectors,
    replace_linears,
)


@torch.no_grad()
def int8_layer_errors(model: nn.Module, input_ids: torch.Tensor, threshold: float) -> dict[str, float]:
    """
    Relative error of the linear layers' outputs in int8, the mean over all layers apart from the readout.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Floating-point causal LM in eval mode. Each layer gets the activations of this model, so that errors of
            earlier layers do not add up.
        input_ids (`torch.Tensor` of shape `(B, T)`):
            Token ids without padding.
        threshold (`float`):
            Magnitude from which on an activation is an outlier.

    Returns:
        `dict[str, float]`: `plain` without the split, `split` with it and floating-point weights for the outlier
        columns (the paper), `split_int8_weight` with int8 weights for them (bitsandbytes), and `columns`, the share of
        columns that are split off.

    Raises:
        `ValueError`: if there is no linear layer.
    """
    rows = []

    def measure(module, inputs, output):
        activations = inputs[0].flatten(0, -2)
        weight = module.weight
        codes, largest = quantize_vectors(weight)
        exact = activations @ weight.T
        columns = outlier_columns(activations, threshold)
        products = (
            int8_linear(activations, codes, largest, columns[:0]),
            int8_linear(activations, codes, largest, columns, weight),
            int8_linear(activations, codes, largest, columns),
        )
        errors = [((product - exact).norm() / exact.norm()).item() for product in products]
        rows.append([*errors, len(columns) / activations.shape[1]])

    handles = [
        module.register_forward_hook(measure)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != "lm_head"
    ]
    if not handles:
        raise ValueError(f"{type(model).__name__} has no linear layer to measure.")
    try:
        model(input_ids=input_ids)
    finally:
        for handle in handles:
            handle.remove()
    means = torch.tensor(rows).mean(0).tolist()
    return dict(zip(("plain", "split", "split_int8_weight", "columns"), means))


def int8_forms(model: nn.Module, threshold: float) -> Iterator[tuple[str, nn.Module]]:
    """
    A model as it is, and its forms in int8, one after another.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Floating-point model; it is left as it is.
        threshold (`float`):
            Magnitude from which on an activation is an outlier.

    Yields:
        `tuple[str, nn.Module]`: `float32`, `int8`, `split` and `split, int8 weights`, with the model.
    """
    yield "float32", model
    for name, settings in (
        ("int8", (None, False)),
        ("split", (threshold, True)),
        ("split, int8 weights", (threshold, False)),
    ):
        copied = copy.deepcopy(model)
        yield name, replace_linears(copied, lambda layer, settings=settings: Int8Linear(layer, *settings))
