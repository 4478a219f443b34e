"""Checks of numbers that several recipes take, before anything is loaded; `None` passes."""

from typing import Any

from transformers import TrainingArguments


# Fields that transformers, TRL and PEFT take as they come, and fail over after everything is loaded
_LEAST = {
    "learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 1,
    "lora_r": 1,
}


def check_training(arguments: Any) -> None:
    """Raises a `ValueError` for settings of a training, in any of the dataclasses of a recipe, that cannot be."""
    given = {name: least for name, least in _LEAST.items() if isinstance(getattr(arguments, name, None), int | float)}
    check_least(arguments, **given)
    if isinstance(arguments, TrainingArguments) and hasattr(arguments, "temperature"):
        check_positive(arguments, "temperature")
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(arguments, name, False) and not getattr(arguments, "use_peft", True):
            raise ValueError(f"`{name}` leaves no weight to train. Give `--use_peft true`, too, to train an adapter.")


def check_least(arguments: Any, **least: int) -> None:
    """Raises a `ValueError` for a field below its least value."""
    for name, lowest in least.items():
        value = getattr(arguments, name)
        if value is not None and value < lowest:
            raise ValueError(f"`{name}` must be at least {lowest}, got {value}.")


def check_positive(arguments: Any, *names: str) -> None:
    """Raises a `ValueError` for a field that is not above 0."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be above 0, got {value}.")


def check_share(arguments: Any, *names: str) -> None:
    """Raises a `ValueError` for a field outside (0, 1]."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"`{name}` must be in (0, 1], got {value}.")
