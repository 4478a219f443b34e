"""Learning-rate schedules that transformers does not have."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


WARMUP_EXPONENTIAL = "warmup_exponential"


def warmup_exponential(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    decay_rate: float | None = None,
    final_ratio: float | None = None,
    num_stable_steps: int = 0,
) -> LambdaLR:
    """
    Linear warm-up from 0 to the optimizer's learning rate, an optional plateau, then exponential decay.

    Args:
        optimizer ([`~torch.optim.Optimizer`]):
            The optimizer.
        num_warmup_steps, num_stable_steps (`int`):
            Optimizer steps of the warm-up, and of the plateau.
        num_training_steps (`int`):
            Optimizer steps in all; needed for `final_ratio` only.
        decay_rate (`float`, *optional*):
            Factor of each step after the plateau, in (0, 1].
        final_ratio (`float`, *optional*):
            Instead of `decay_rate`: the learning rate at the last step as a share of the peak, in (0, 1]; the same
            curve at any number of steps.

    Raises:
        `ValueError`: if both or neither of `decay_rate` and `final_ratio` are given, one is not in (0, 1], or no step
        is
            left for the decay to `final_ratio`.

    Example:

    ```python
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = warmup_exponential(optimizer, num_warmup_steps=2, num_training_steps=5, decay_rate=0.5)
    >>> [schedule.lr_lambdas[0](step) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    ```
    """
    check_exponential(decay_rate, final_ratio)
    decay_start = num_warmup_steps + num_stable_steps
    if final_ratio is not None:
        # The schedule's value at step s is used for update s + 1, so the last update has num_training_steps - 1
        decay_steps = num_training_steps - 1 - decay_start
        if decay_steps < 1:
            raise ValueError(
                f"Warm-up and plateau take {decay_start} of {num_training_steps} steps, so no step is left for the "
                "decay. Take fewer of them, or more steps."
            )
        decay_rate = final_ratio ** (1 / decay_steps)

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        return decay_rate ** max(0, step - decay_start)

    return LambdaLR(optimizer, factor)


def check_exponential(decay_rate: float | None, final_ratio: float | None) -> None:
    """Raises `ValueError` unless exactly one of the two is given, in (0, 1]."""
    if (decay_rate is None) == (final_ratio is None):
        raise ValueError(
            f"The schedule `{WARMUP_EXPONENTIAL}` takes exactly one of `decay_rate` and `final_ratio`, got "
            f"{decay_rate} and {final_ratio}."
        )
    value = final_ratio if decay_rate is None else decay_rate
    if not 0 < value <= 1:
        raise ValueError(f"`decay_rate` and `final_ratio` must be in (0, 1], got {value}.")
