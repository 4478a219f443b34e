"""The parameter groups of the thinking modules, shared by HRPOTrainer and the optimizer patch."""

from ..models.thinking.thinking_methods import ThinkingMethod
from ..models.thinking.thinking_residual import thinking_modules_in_use
from .parameter_groups import ParameterGroupSpec


def thinking_group_specs(
    method: ThinkingMethod,
    lr_gate: float | None,
    lr_Lambda: float | None,
    lr_projection: float | None,
    weight_decay_Lambda: float | None = 0.0,
    lr_head: float | None = None,
) -> list[ParameterGroupSpec]:
    """
    Groups of the thinking modules that a method uses; a peak learning rate of `None` skips a group. The gate's is that
    of both gates.
    """
    specs = [
        ParameterGroupSpec("thinking_residual_gate", lr_gate),
        ParameterGroupSpec("thinking_residual_Lambda", lr_Lambda, weight_decay_Lambda),
        ParameterGroupSpec("thinking_projection", lr_projection),
        ParameterGroupSpec("thinking_head", lr_head),
    ]
    in_use = thinking_modules_in_use(method)
    return [
        spec for spec in specs if spec.lr is not None and any(module.startswith(spec.pattern) for module in in_use)
    ]
