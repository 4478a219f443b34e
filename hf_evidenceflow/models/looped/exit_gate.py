"""Where a token stops looping, by the exit gate of Ouro (arXiv 2510.25741, section 3).

Shapes: B rows, T positions, H hidden size, R loops.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def exit_distribution(gates: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Probability `(..., R)`, in at least fp32, to stop after each loop, from the gates' logits `(...)` of all loops:
    p_r = sigmoid(g_r) (1 - p_1 - ... - p_{r-1}), and the last loop takes what is left.
    """
    left, shares = None, []
    for gate in gates[:-1]:
        chance = _chance(gate)
        left = torch.ones_like(chance) if left is None else left
        shares.append(chance * left)
        left = left * (1 - chance)
    shares.append(torch.ones_like(_chance(gates[-1])) if left is None else left)
    return torch.stack(shares, dim=-1)


def _chance(gate):
    return gate.to(torch.promote_types(gate.dtype, torch.float32)).sigmoid()


class LoopExits:
    """
    The exits of one forward pass, by the config's threshold and mode.

    Attributes:
        frozen (`torch.Tensor` of shape `(B, T, 1)` or `None`):
            Tokens whose state no longer changes; `None` where none are.
        all_left (`bool`):
            Whether no token needs a further loop.
    """

    def __init__(self, config, token_mask: torch.Tensor | None):
        self.frozen: torch.Tensor | None = None
        self.all_left = False
        self._threshold, self._freezes = config.early_exit_threshold, config.early_exit_mode == "freeze"
        self._padding = None if token_mask is None else ~token_mask.bool()
        self._stay: torch.Tensor | None = None  # probability not to have stopped yet
        self._left: torch.Tensor | None = None
        self._states: torch.Tensor | None = None

    def after_loop(self, states: torch.Tensor, gate: torch.Tensor) -> None:
        """Takes note of who leaves after a loop, not the last: states `(B, T, H)`, gate's logits `(B, T)`."""
        stay = 1 - _chance(gate)
        if self._left is None:
            self._stay, self._states = stay, states
            self._left = torch.zeros_like(stay, dtype=torch.bool) if self._padding is None else self._padding
        else:
            self._stay = self._stay * stay
        leaving = ~self._left & (1 - self._stay >= self._threshold)
        self._states = torch.where(leaving[..., None], states, self._states)
        self._left = self._left | leaving
        if self._freezes:
            self.frozen = self._left[..., None]
            self.all_left = not torch.compiler.is_compiling() and bool(self._left.all())

    def last_states(self, states: torch.Tensor) -> torch.Tensor:
        """The states `(B, T, H)` that are read out: each token's where it left, of those left over `states`."""
        return states if self._left is None else torch.where(self._left[..., None], self._states, states)


def expected_exit_loss(
    logits: Sequence[torch.Tensor], shares: torch.Tensor, labels: torch.Tensor, entropy_coef: float, count=None
) -> torch.Tensor:
    """
    The loss that trains model and gate together: cross-entropy after each loop, weighted by the probability to stop
    there, minus `entropy_coef` times the entropy of that distribution, so that no loop is left out (Ouro, arXiv
    2510.25741, its first stage; the published inference code does not hold it).

    Args:
        logits (`Sequence[torch.Tensor]`): of each loop, `(B, T, V)`.
        shares (`torch.Tensor` of shape `(B, T, R)`): as of [`exit_distribution`].
        labels (`torch.Tensor` of shape `(B, T)`): not shifted; -100 is left out.
        entropy_coef (`float`): weight of the entropy.
        count (`int` or `torch.Tensor`, *optional*): what the sum is divided by; by default the labels that count.
    """
    labels = F.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    counts = labels != -100
    shares = shares.flatten(0, 1)
    losses = torch.stack(
        [
            F.cross_entropy(each.flatten(0, 1).to(shares.dtype), labels, reduction="none", ignore_index=-100)
            for each in logits
        ],
        dim=-1,
    )
    entropy = -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum(-1)  # finite gradient at 0
    loss = ((shares * losses).sum(-1) - entropy_coef * entropy) * counts
    return loss.sum() / (counts.sum() if count is None else count)
