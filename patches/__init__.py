"""Patches for objects that other people made, see README.md. Importing this package patches nothing."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:  # for editors and type checkers, the names of the table below
    from .optimizer import (
        ParameterGroupPatch as ParameterGroupPatch,
        patch_parameter_group_lrs as patch_parameter_group_lrs,
        patch_trainer_optimizer as patch_trainer_optimizer,
    )
    from .unsloth import UnslothPatch as UnslothPatch, patch_unsloth as patch_unsloth


_MODULE_OF = {
    "ParameterGroupPatch": "optimizer",
    "UnslothPatch": "unsloth",
    "patch_parameter_group_lrs": "optimizer",
    "patch_trainer_optimizer": "optimizer",
    "patch_unsloth": "unsloth",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))
