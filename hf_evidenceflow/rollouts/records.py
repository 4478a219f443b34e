"""What a rollout writes down, by original row; rows that end or wait do not move it.

Shapes: R rows of the whole call, n rows at hand, C completion tokens, H hidden size, V vocabulary.
"""

import torch

from ..models.thinking.generation_thinking import ThinkingRollout


_FIRST_TOKENS = 64


class RolloutRecords:
    """
    Tensors `(R, C, ...)` that grow with the longest row.

    Args:
        rows (`int`): rows R.
        fill (`dict[str, tuple]`): name -> (shape of an item, dtype, value where nothing was written).
        max_tokens (`int`): most tokens of a row.
        device (`torch.device`): device.
    """

    def __init__(self, rows: int, fill: dict[str, tuple], max_tokens: int, device: torch.device):
        self.fill, self.max_tokens = fill, max_tokens
        count = min(max_tokens, _FIRST_TOKENS)
        self.tensors = {
            name: torch.full((rows, count, *shape), value, dtype=dtype, device=device)
            for name, (shape, dtype, value) in fill.items()
        }
        self.length = 0

    def write(self, rows: torch.Tensor, steps: torch.Tensor, last_step: int, **items: torch.Tensor) -> None:
        """Write items `(n, ...)` of rows at their steps; `last_step` is the largest of these."""
        count = next(iter(self.tensors.values())).shape[1]
        if last_step >= count:
            more = min(max(count, last_step + 1 - count), self.max_tokens - count)
            for name, tensor in self.tensors.items():
                shape = (tensor.shape[0], more, *tensor.shape[2:])
                self.tensors[name] = torch.cat([tensor, tensor.new_full(shape, self.fill[name][2])], dim=1)
        for name, item in items.items():
            self.tensors[name][rows, steps] = item.to(self.fill[name][1])
        self.length = max(self.length, last_step + 1)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name][:, : self.length]


def thinking_rollout(records: RolloutRecords) -> ThinkingRollout:
    """The records of a thinking model in the form of [`ThinkingRollout`]."""
    logps = records["logps"] if "logps" in records.tensors else None
    return ThinkingRollout(
        *(records[name] for name in ("states", "mask", "embeds_ratio", "gate", "hidden_ratio")), logps
    )
