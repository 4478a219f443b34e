"""The states of the random number generators, to go back to."""

import random
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class RandomState:
    """Made by [`kept_random_state`]."""

    python: tuple
    numpy: tuple
    cpu: torch.Tensor
    accelerator: torch.Tensor | None

    def restore(self) -> None:
        """Go back to the states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module().set_rng_state(self.accelerator)


def kept_random_state() -> RandomState:
    """The states of Python, NumPy, torch on the CPU and on the current accelerator."""
    accelerator = torch.get_device_module().get_rng_state() if torch.accelerator.is_available() else None
    return RandomState(random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator)
