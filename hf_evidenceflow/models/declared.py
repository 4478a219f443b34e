"""What a trainer asks of any causal LM: which parameters not to decay, and what to count while it is evaluated."""

import contextlib
from collections.abc import Iterator

from accelerate.utils import extract_model_from_parallel
from torch import nn

from .decoder import base_causal_lm
from .router_statistics import RouterStatistics, expert_modules


def no_decay_names(model: nn.Module) -> set[str]:
    """
    Names, in a model or a wrapper of it (PEFT, DDP), of the parameters that the model keeps out of weight decay, which
    would move them without any gradient. It declares them as timm's models do: by a method `no_weight_decay()` that
    returns the last parts of their names.

    Example:

    ```python
    >>> class MyTrainer(Trainer):
    ...     def get_decay_parameter_names(self, model):
    ...         skipped = no_decay_names(model)
    ...         return [name for name in super().get_decay_parameter_names(model) if name not in skipped]
    ```
    """
    declared = getattr(base_causal_lm(extract_model_from_parallel(model)), "no_weight_decay", set)()
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] in declared}


def statistic_names(model: nn.Module) -> tuple[str, ...]:
    """What [`evaluation_statistics`] finds in a model: [`RouterStatistics.names`] where it has experts."""
    return RouterStatistics.names if expert_modules(model) else ()


@contextlib.contextmanager
def evaluation_statistics(model: nn.Module) -> Iterator[dict[str, float]]:
    """Yields a `dict` that holds the statistics of the block's forward passes, by name, when the block has ended."""
    statistics: dict[str, float] = {}
    if not statistic_names(model):
        yield statistics
        return
    with RouterStatistics(model) as router:
        yield statistics
    statistics.update(router.summary())
