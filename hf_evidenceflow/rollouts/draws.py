"""Random draws of tokens that do not depend on how rows are batched, and the stock ones.

Shapes: R rows of the whole call, n rows at hand, V vocabulary.
"""

import torch


_BLOCK = 64  # steps whose numbers are drawn at once


def draw_inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """
    One token per row `(n,)`, int64: the first whose cumulative probability exceeds a uniform number. A token of weight
    0 is never drawn.

    Args:
        probs (`torch.Tensor` of shape `(n, V)`): non-negative weights, fp32; each sum is positive (it need not be 1).
        uniform (`torch.Tensor` of shape `(n,)`): numbers in [0, 1), fp32.
    """
    cumulative = probs.cumsum(-1)
    # In fp32 u < 1 gives u * total < total, so the index is that of a token
    return torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(1)


class TableDraws:
    """
    Draws from a table of uniform numbers, one for each of R rows and each step: a row's tokens do not change with the
    rows next to it. The numbers come from torch's global generator, 64 steps at a time.
    """

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.table = torch.empty(rows, 0, device=device)

    def draw(self, probs: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor, last_step: int) -> torch.Tensor:
        """Tokens `(n,)` from distributions `(n, V)`, fp32, of these rows and steps; `last_step`: the largest."""
        while last_step >= self.table.shape[1]:
            self.table = torch.cat([self.table, torch.rand(self.rows, _BLOCK, device=self.table.device)], dim=1)
        return draw_inverse_cdf(probs, self.table[rows, steps])


class MultinomialDraws:
    """
    The draws of the stock loop: `torch.multinomial` over all rows of the call, finished ones included. With the same
    seed the tokens are those of `generate`, as long as all rows run at the same step.
    """

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows

    def draw(self, probs: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor, last_step: int) -> torch.Tensor:
        """As in [`TableDraws`]."""
        everything = probs.new_ones(self.rows, probs.shape[1])
        everything[rows] = probs
        return torch.multinomial(everything, num_samples=1).squeeze(1)[rows]
