"""Finds the parameters that a cross-layer variant has and Llama has not, and keeps them out of weight decay."""

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
)


def extra_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """
    The variant's own parameters.

    Args:
        model (`nn.Module`):
            A cross-layer Llama, bare or wrapped (PEFT, DDP).

    Returns:
        `dict[str, nn.Parameter]`: By name in `model`; empty for variants without any.

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


def no_decay_names(model: nn.Module) -> set[str]:
    """
    Names to leave out of `Trainer.get_decay_parameter_names(model)`, which would decay them: by 0.1 of a rate a step
    they move without any gradient, and decay is read as learning.

    Args:
        model (`nn.Module`):
            As in [`extra_parameters`].

    Example:

    ```python
    >>> class MyTrainer(Trainer):
    ...     def get_decay_parameter_names(self, model):
    ...         skipped = no_decay_names(model)
    ...         return [name for name in super().get_decay_parameter_names(model) if name not in skipped]
    ```
    """
    return set(extra_parameters(model))


__all__ = ["EXTRA_PARAMETER_NAMES", "extra_parameters", "no_decay_names"]
