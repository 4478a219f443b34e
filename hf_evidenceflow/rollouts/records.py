"""What a rollout writes down, by original row; rows that end or wait do not move it.

Shapes: R rows of the whole call, n rows at hand, C completion tokens, H hidden size, V vocabulary.
"""

import torch

from ..models.thinking.thinking_rollout import UNFUSED, ThinkingRollout


_FIRST_TOKENS = 64


_DRAWN = ("log_density", "drawn", "drawn_ids", "choice")


def thinking_fill(model, thinking) -> dict[str, tuple]:
    """What [`RolloutRecords`] needs to know for a thinking model and the [`ThinkingState`] of a call."""
    fill: dict[str, tuple] = {
        "states": ((model.config.hidden_size,), model.dtype, 0.0),
        "mask": ((), torch.bool, False),
        "stats": ((3,), torch.float32, UNFUSED),
    }
    if thinking.draws is None:
        return fill
    method = thinking.source.method
    if method.schedule == "head":
        fill["choice"] = (), torch.long, -1
    if thinking.noise is not None and method.noise == "gumbel":
        count = min(thinking.source.top_k, model.config.vocab_size)
        fill |= {"drawn": ((count,), torch.float32, -torch.inf), "drawn_ids": ((count,), torch.long, 0)}
    if method.schedule == "head" or (thinking.noise is not None and method.noise != "dropout"):
        fill["log_density"] = (), torch.float32, 0.0
    return fill


class RolloutRecords:
    """
    Tensors `(R, C, ...)` that grow with the longest row.

    Args:
        rows (`int`): rows R.
        fill (`dict[str, tuple]`): name -> (shape of an item, dtype, value where nothing was written).
        max_tokens (`int`): most tokens per row.
        device (`torch.device`): device.
    """

    def __init__(self, rows: int, fill: dict[str, tuple], max_tokens: int, device: torch.device):
        self.rows, self.fill, self.max_tokens, self.device = rows, fill, max_tokens, device
        self.capacity = min(max_tokens, _FIRST_TOKENS)
        self.tensors = {name: self._blank(name, self.capacity) for name in fill}
        self.length = 0

    def _blank(self, name, count):
        shape, dtype, value = self.fill[name]
        blank = torch.tensor(value, dtype=dtype, device=self.device)
        return blank.expand(self.rows, count, *shape).clone(memory_format=torch.contiguous_format)

    def write(self, rows: torch.Tensor, steps: torch.Tensor, last_step: int, **items: torch.Tensor) -> None:
        """Write items `(n, ...)` of rows at their steps; `last_step` is the largest of these."""
        if last_step >= self.capacity:
            more = min(max(self.capacity, last_step + 1 - self.capacity), self.max_tokens - self.capacity)
            for name, tensor in self.tensors.items():
                self.tensors[name] = torch.cat([tensor, self._blank(name, more)], dim=1)
            self.capacity += more
        for name, item in items.items():
            self.tensors[name][rows, steps] = item.to(self.fill[name][1])
        self.length = max(self.length, last_step + 1)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name][:, : self.length]


def thinking_rollout(records: RolloutRecords) -> ThinkingRollout:
    """The records of a thinking model in the form of [`ThinkingRollout`]."""
    logps = records["logps"] if "logps" in records.tensors else None
    drawn = {name: records[name] for name in _DRAWN if name in records.tensors}
    return ThinkingRollout.from_stats(records["states"], records["mask"], records["stats"], logps, **drawn)
