"""Finds the parameters that a cross-layer variant has and Llama has not."""

from torch import nn


EXTRA_PARAMETER_NAMES = (
    "mlp_residual_weights",
    "attn_residual_weights",
    "value_residual_weights",
    "state_residual_weights",
    "depth_query",
    "score_log_a",
    "score_a",
    "score_b",
    "cross_layer_gate",
    "hyper_input",
    "hyper_mix",
    "hyper_output",
    "hyper_weight",
    "hyper_base",
    "hyper_scale",
)


def extra_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """
    The variant's own parameters by name in `model`, a cross-layer Llama, bare or wrapped (PEFT, DDP).

    Example:

    ```python
    >>> model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(variant="v2m3", num_hidden_layers=3))
    >>> list(extra_parameters(model))
    ['model.layers.1.mlp_residual_weights', 'model.layers.2.mlp_residual_weights']
    ```
    """
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in EXTRA_PARAMETER_NAMES
    }
