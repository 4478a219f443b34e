"""A trainer that logs the parts of a loss beside their sum."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from transformers import Trainer


class LoggedPartsTrainer(Trainer):
    """
    Differs from `Trainer` in what it logs: the mean of each part of the loss since the last entry.

    Args:
        parts (`Callable`):
            Takes the model's output and the inputs of a batch; returns the parts by name, as scalars.
        kwargs:
            As `Trainer`.
    """

    def __init__(self, *args, parts: Callable[..., Mapping[str, torch.Tensor]], **kwargs):
        super().__init__(*args, **kwargs)
        self.parts, self.seen = parts, defaultdict(list)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            for name, value in self.parts(outputs, inputs).items():
                self.seen[name].append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self.seen.items()}
            self.seen.clear()
        super().log(logs, *args, **kwargs)
