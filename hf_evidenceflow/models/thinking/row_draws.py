"""Random numbers that belong to a row and a step of a rollout, whatever rows are next to it.

Each row gets a key from torch's global generator, once a call; the numbers of its steps are hashes of the key. So the
same seed gives the same numbers in any batch, and nothing waits for the device.

Source: the mixing function of SplitMix64 (Steele, Lea, Flood 2014).

Shapes: R rows of the call, n rows at hand.
"""

import torch


_WEYL = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685
_BITS = 23  # the largest number, 1 - 2^-24, is below 1 in fp32


def _mix(bits):
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * _FIRST  # shifts of signed numbers bring ones in
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * _SECOND
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


class RowDraws:
    """
    Draws of R rows.

    Example:

    ```python
    >>> draws = RowDraws(3, torch.device("cpu"))
    >>> draws.uniform(torch.tensor([0, 2]), torch.tensor([5, 1]), 4, stream=0).shape
    torch.Size([2, 4])
    ```
    """

    def __init__(self, rows: int, device: torch.device):
        self.keys = torch.randint(1 << 62, (rows,), device=device)

    def uniform(self, rows: torch.Tensor, steps: torch.Tensor, count: int, stream: int) -> torch.Tensor:
        """Numbers `(n, count)` in (0, 1), fp32, of rows `(n,)` at steps `(n,)`; each stream has its own."""
        keys = _mix(_mix(self.keys[rows] + stream * _WEYL) + steps * _WEYL)
        bits = _mix(keys[:, None] + torch.arange(1, count + 1, device=keys.device) * _WEYL)
        return (((bits >> 40) & ((1 << _BITS) - 1)).float() + 0.5) / (1 << _BITS)

    def normal(self, rows: torch.Tensor, steps: torch.Tensor, count: int, stream: int) -> torch.Tensor:
        """Standard normal numbers `(n, count)`, fp32 (Box-Muller)."""
        radius, angle = self.uniform(rows, steps, 2 * count, stream).chunk(2, dim=-1)
        return (-2 * radius.log()).sqrt() * (2 * torch.pi * angle).cos()

    def gumbel(self, rows: torch.Tensor, steps: torch.Tensor, count: int, stream: int) -> torch.Tensor:
        """Standard Gumbel numbers `(n, count)`, fp32."""
        return -(-self.uniform(rows, steps, count, stream).log()).log()
