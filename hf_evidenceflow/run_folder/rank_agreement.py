"""What one rank knows and all must act on."""

import torch
import torch.distributed as dist


class RankAgreement:
    """
    Asks all ranks through a group on the CPU, so that no accelerator is waited for. Made at the same point on all.
    """

    def __init__(self):
        self._group = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    def any(self, value: bool) -> bool:
        """Whether `value` is true on any rank; to be called by all of them."""
        if self._group is None:
            return value
        answer = torch.tensor(int(value))
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._group)
        return bool(answer.item())
