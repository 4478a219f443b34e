"""NF4: the 16 values derived from the quantiles of the normal distribution, and blockwise quantisation to them.

Weights of a block, divided by its largest magnitude, lie in [-1, 1] and are roughly normal. NF4's values are
quantiles of the normal distribution at evenly spaced probabilities, scaled to [-1, 1]: many values where many weights
are. To have an exact zero, the negative half has 8 quantiles and the positive half 9, and the zero that both have is
kept once.

bitsandbytes does the fast work in the recipe; this is the same in a few lines of plain code.

Source: Dettmers et al. 2023, arXiv 2305.14314, section 3. The outermost probability, 0.9677083, is not printed there;
it is bitsandbytes', the mean of 1 - 1/(2 * 15) and 1 - 1/(2 * 16).

Shapes: N weights, B blocks of S weights.
"""

import torch


_OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2


def nf4_codebook() -> torch.Tensor:
    """
    The values of NF4.

    Returns:
        `torch.Tensor` of shape `(16,)`: float32, rising from -1 to 1: 7 negative ones, 0, and 8 positive ones.
    """
    negative = torch.special.ndtri(torch.linspace(1 - _OUTERMOST, 0.5, 8, dtype=torch.float64))
    positive = torch.special.ndtri(torch.linspace(0.5, _OUTERMOST, 9, dtype=torch.float64))
    values = torch.cat([negative[:-1], torch.zeros(1, dtype=torch.float64), positive[1:]])
    return (values / values.max()).float()


def uniform_int4_codebook() -> torch.Tensor:
    """
    The values of symmetric int4: -7 to 7, over 7.

    Returns:
        `torch.Tensor` of shape `(15,)`: float32, rising from -1 to 1. -8 is left out, so that both ends are reached.
    """
    return torch.arange(-7, 8, dtype=torch.float32) / 7


def quantize_blockwise(
    weights: torch.Tensor, codebook: torch.Tensor, block_size: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The nearest value of a codebook for each weight, relative to the largest magnitude of its block.

    Args:
        weights (`torch.Tensor`):
            Weights of any shape; N must be a multiple of the block size.
        codebook (`torch.Tensor` of shape `(codes,)`):
            Rising values in [-1, 1].
        block_size (`int`, *optional*, defaults to `64`):
            Weights that share a scale.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: int64 codes of shape `(B, S)`, and the scales of shape `(B,)`.

    Raises:
        `ValueError`: if the blocks do not fit, or the codebook does not rise.
    """
    if block_size < 1 or weights.numel() % block_size:
        raise ValueError(
            f"{weights.numel()} weights are no whole number of blocks of {block_size}. Take another `block_size`."
        )
    if not (codebook.diff() > 0).all():
        raise ValueError(f"The values of `codebook` must rise, got {codebook.tolist()}. Sort them.")
    blocks = weights.detach().reshape(-1, block_size).float()
    scales = blocks.abs().amax(dim=1)
    borders = (codebook[:-1] + codebook[1:]) / 2
    return torch.bucketize(blocks / scales.clamp_min(torch.finfo().tiny)[:, None], borders), scales


def dequantize_blockwise(
    codes: torch.Tensor, scales: torch.Tensor, codebook: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    """
    The weights that codes stand for.

    Args:
        codes, scales (`torch.Tensor` of shapes `(B, S)` and `(B,)`):
            As from [`quantize_blockwise`].
        codebook (`torch.Tensor` of shape `(codes,)`):
            The values.
        shape (`tuple[int, ...]`):
            Shape of the weights.

    Returns:
        `torch.Tensor` of that shape.
    """
    return (codebook[codes] * scales[:, None]).reshape(shape)


def bits_per_weight(block_size: int = 64, double_block_size: int | None = 256) -> float:
    """
    What a weight takes in 4 bits with its share of the scales.

    Args:
        block_size (`int`, *optional*, defaults to `64`):
            Weights a scale.
        double_block_size (`int`, *optional*, defaults to `256`):
            Scales, of 8 bits each, that share a scale of 32 bits (double quantisation). `None`: scales of 32 bits.

    Returns:
        `float`: `4 + 32 / block_size`, or `4 + 8 / block_size + 32 / (block_size * double_block_size)`.

    Example:

    ```python
    >>> round(bits_per_weight(), 3), bits_per_weight(double_block_size=None)
    (4.127, 4.5)
    ```
    """
    if double_block_size is None:
        return 4 + 32 / block_size
    return 4 + 8 / block_size + 32 / (block_size * double_block_size)


def relative_error(weights: torch.Tensor, approximation: torch.Tensor) -> float:
    """The norm of the difference over the norm of the weights."""
    return ((approximation - weights).norm() / weights.norm()).item()
