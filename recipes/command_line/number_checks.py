"""Checks of numbers that several recipes take, before anything is loaded; `None` passes."""

from typing import Any


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
