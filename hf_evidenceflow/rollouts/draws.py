"""Random draws of tokens that do not depend on how rows are batched, and the stock ones.

Shapes: R rows of the whole call, n rows at hand, V vocabulary.
"""

import torch


_BLOCK = 64  # steps whose numbers are drawn at once


def draw_inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """
    Draw one token a row: the first whose cumulative probability exceeds a uniform number.

    Args:
        probs (`torch.Tensor` of shape `(n, V)`):
            Non-negative weights, fp32; each row has a positive sum (it need not be 1).
        uniform (`torch.Tensor` of shape `(n,)`):
            Numbers in [0, 1), fp32.

    Returns:
        `torch.Tensor` of shape `(n,)`, int64. A token of weight 0 is never drawn.
    """
    cumulative = probs.cumsum(-1)
    # In fp32 u < 1 gives u * total < total, so the index is that of a token
    return torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(1)


class TableDraws:
    """
    Draws from a table of uniform numbers, one for each row and step: a row's tokens do not change with the rows beside
    it. The numbers come from torch's global generator, 64 steps at a time.

    Args:
        rows (`int`): rows R of the call.
        device (`torch.device`): device of the probabilities.
    """

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.table = torch.empty(rows, 0, device=device)

    def draw(self, probs: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor, last_step: int) -> torch.Tensor:
        """
        Args:
            probs (`torch.Tensor` of shape `(n, V)`): distributions, fp32.
            rows, steps (`torch.Tensor` of shape `(n,)`): original row and step of each, int64.
            last_step (`int`): the largest of the steps.

        Returns:
            `torch.Tensor` of shape `(n,)`, int64.
        """
        while last_step >= self.table.shape[1]:
            self.table = torch.cat([self.table, torch.rand(self.rows, _BLOCK, device=self.table.device)], dim=1)
        return draw_inverse_cdf(probs, self.table[rows, steps])


class MultinomialDraws:
    """
    The draws of the stock loop: `torch.multinomial` over all rows of the call, finished ones included. With the same
    seed the tokens are those of `generate`, as long as all rows run at the same step.

    Args:
        rows (`int`): rows R of the call.
        device (`torch.device`): device of the probabilities.
    """

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows

    def draw(self, probs: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor, last_step: int) -> torch.Tensor:
        """As in [`TableDraws`]."""
        everything = probs.new_ones(self.rows, probs.shape[1])
        everything[rows] = probs
        return torch.multinomial(everything, num_samples=1).squeeze(1)[rows]
