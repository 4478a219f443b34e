"""LLM.int8(): vector-wise int8 products, with the outlier columns of the activations kept in floating point.

Each row of the activations and each output of the weight has a scale of its own, its largest magnitude over 127. One
large activation makes its whole row coarse, so that the columns of the activations in which a magnitude reaches the
threshold are taken out and multiplied in floating point (section 3.2). Which columns these are is seen on the
activations, at run time: the weight does not show it.

`bitsandbytes.nn.Linear8bitLt` ignores its threshold on CPU (0.50), so that the split is made here, over bitsandbytes'
int8 operations. Two deviations of that library are choices here: it takes the weights of the outlier columns from
int8, the paper in floating point (`outlier_weight`); and it counts what is below the threshold in an outlier column
among the int8 part when it looks for a row's scale, which we do not.

Source: Dettmers et al. 2022, arXiv 2208.07339.

Shapes: M rows of activations, K inputs, N outputs.
"""

import torch
from torch import nn

from hf_evidenceflow.recipes.course.shared.recipe import require_course_package


def quantize_vectors(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rows as int8, each with its own scale.

    Args:
        rows (`torch.Tensor` of shape `(M, K)`):
            Floating-point rows: activations, or a weight with one row an output.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: int8 codes of shape `(M, K)`, and the largest magnitude of each row,
        float32 of shape `(M,)`; a row is about `codes * largest / 127`.
    """
    functional = require_course_package("bitsandbytes", "LLM.int8()").functional
    codes, largest, _ = functional.int8_vectorwise_quant(rows)
    return codes, largest


def outlier_columns(activations: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """
    The columns in which some activation reaches the threshold.

    Args:
        activations (`torch.Tensor` of shape `(M, K)`):
            Inputs of a linear layer; not its weight.
        threshold (`float`, *optional*):
            Magnitude from which on an activation is an outlier, above 0. `None`: none is.

    Returns:
        `torch.Tensor`: their indices, int64, in rising order.

    Raises:
        `ValueError`: if the threshold is not positive.
    """
    if threshold is None:
        return torch.empty(0, dtype=torch.int64, device=activations.device)
    if not threshold > 0:
        raise ValueError(f"`threshold` must be above 0, got {threshold}. `None` switches the split off.")
    return (activations.abs() >= threshold).any(dim=0).nonzero().flatten()


def int8_linear(
    activations: torch.Tensor,
    codes: torch.Tensor,
    largest: torch.Tensor,
    columns: torch.Tensor,
    outlier_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    `activations @ weight.T` in int8, apart from some columns.

    Args:
        activations (`torch.Tensor` of shape `(M, K)`):
            Inputs.
        codes, largest (`torch.Tensor` of shapes `(N, K)` and `(N,)`):
            The weight, see [`quantize_vectors`].
        columns (`torch.Tensor`):
            Columns of the activations that are multiplied in floating point, see [`outlier_columns`].
        outlier_weight (`torch.Tensor` of shape `(N, K)`, *optional*):
            Floating-point weight for these columns (the paper). `None` takes them from the codes (bitsandbytes).

    Returns:
        `torch.Tensor` of shape `(M, N)`: the product, in the dtype of the activations.
    """
    rest = activations.index_fill(1, columns, 0.0)
    row_codes, row_largest = quantize_vectors(rest)
    product = torch.ops.bitsandbytes.int8_scaled_mm(
        row_codes, codes, row_largest, largest, dtype=activations.dtype
    )  # [M, N]
    if not len(columns):
        return product
    weight = codes * (largest[:, None] / 127) if outlier_weight is None else outlier_weight
    return product + activations[:, columns] @ weight[:, columns].to(activations.dtype).T


class Int8Linear(nn.Module):
    """
    A linear layer of LLM.int8(), for inference.

    Args:
        linear (`nn.Linear`):
            Layer to quantise.
        threshold (`float`, *optional*, defaults to `6.0`):
            See [`outlier_columns`].
        float_outlier_weight (`bool`, *optional*, defaults to `True`):
            Whether the weights of outlier columns are the floating-point ones. As any column may be asked for, the
            module then keeps the whole weight; `False` keeps the int8 codes alone.

    Attributes:
        split_share (`float`):
            Share of the columns split off, the mean over all calls.
    """

    def __init__(self, linear: nn.Linear, threshold: float | None = 6.0, float_outlier_weight: bool = True):
        super().__init__()
        outlier_columns(linear.weight[:1], threshold)  # refuses a bad threshold before the first call
        self.threshold = threshold
        weight = linear.weight.detach()
        codes, largest = quantize_vectors(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("largest", largest)
        self.register_buffer("outlier_weight", weight.clone() if threshold and float_outlier_weight else None)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self._split, self._calls = 0.0, 0

    @property
    def split_share(self) -> float:
        return self._split / max(self._calls, 1)

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's outputs, of shape `(..., N)` for inputs of shape `(..., K)`."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        columns = outlier_columns(rows, self.threshold)
        self._split, self._calls = self._split + len(columns) / rows.shape[1], self._calls + 1
        product = int8_linear(rows, self.codes, self.largest, columns, self.outlier_weight)
        if self.bias is not None:
            product = product + self.bias
        return product.reshape(*hidden.shape[:-1], -1)


def replace_linears(model: nn.Module, make, skip: tuple[str, ...] = ("lm_head",)) -> nn.Module:
    """
    Replace the linear layers of a model in place.

    Args:
        model (`nn.Module`):
            The model.
        make (`Callable[[nn.Linear], nn.Module]`):
            Makes the new layer.
        skip (`tuple[str, ...]`, *optional*, defaults to `("lm_head",)`):
            Last part of the names of layers to leave: the readout stays in floating point, as in bitsandbytes.

    Returns:
        `nn.Module`: the model.

    Raises:
        `ValueError`: if there is no linear layer to replace.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in skip
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no `nn.Linear` apart from {', '.join(skip)}.")
    for name, module in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(module))
    return model
