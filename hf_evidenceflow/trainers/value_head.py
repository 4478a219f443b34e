"""The value head of PPO: a linear layer on the states behind a policy's last norm, saved in a file of its own.

Shapes: B rows, T positions, H hidden size.
"""

import os
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..atomic_write import atomic_file
from ..models.decoder import base_causal_lm


VALUE_HEAD_NAME = "value_head.safetensors"
_PREFIX = "value_head."


def add_value_head(model: nn.Module, device: torch.device) -> None:
    """Give a causal LM, or a PEFT model around one, a `value_head` in fp32 whose values start at 0."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.value_head = head.to(device)


def without_value_head(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(_PREFIX)}


def save_value_head(model: nn.Module, folder: str | os.PathLike) -> None:
    with atomic_file(os.path.join(folder, VALUE_HEAD_NAME)) as temporary:
        save_file(model.value_head.state_dict(), temporary)


def load_value_head(model: nn.Module, folder: str | os.PathLike) -> None:
    model.value_head.load_state_dict(load_file(os.path.join(folder, VALUE_HEAD_NAME)))


@contextmanager
def last_states(model: nn.Module):
    """Collects the states `[B, T, H]` behind the last norm in each pass over the model's body."""
    states = []
    handle = base_causal_lm(model).base_model.register_forward_hook(
        lambda module, args, output: states.append(output.last_hidden_state)
    )
    try:
        yield states
    finally:
        handle.remove()
