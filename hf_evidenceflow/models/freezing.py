"""Trains some modules of a model only."""

from collections.abc import Sequence

from torch import nn


def freeze_all_but(model: nn.Module, names: Sequence[str]) -> None:
    """
    Let only the named modules or parameters train, by full names such as `"lm_head"` or `"model.layers.0"`; the others
    get no gradient. A name without parameters is a `ValueError`.
    """
    parameters = dict(model.named_parameters())
    model.requires_grad_(False)
    for name in names:
        own = [parameter for key, parameter in parameters.items() if key == name or key.startswith(f"{name}.")]
        if not own:
            raise ValueError(
                f"The model has no parameters under {name!r}. At its top it has: "
                f"{', '.join(dict.fromkeys(key.split('.')[0] for key in parameters))}."
            )
        for parameter in own:
            parameter.requires_grad_(True)
