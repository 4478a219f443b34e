"""The size of the tiles in which TRL's fused head computes log-probabilities, where it has no kernel for them.

On a CPU TRL folds each tile of 4,096 tokens times 32,768 logits in torch, where up to nine tensors of its size are
alive at once: 4.8 GB, whatever the number of tokens that fill more than one tile. Smaller tiles are no slower.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from trl.kernels import chunked_logprob


TILE_TOKENS = 512
TILE_LOGITS = 32768  # TRL's
FOLDED_COPIES = 9


@contextmanager
def small_head_tiles(device: torch.device) -> Iterator[None]:
    """Within it, passes and their gradients on a device without Triton compute [`TILE_TOKENS`] tokens at a time."""
    before = chunked_logprob.TOKEN_CHUNK_SIZE
    if device.type not in ("cuda", "xpu"):
        chunked_logprob.TOKEN_CHUNK_SIZE = min(before, TILE_TOKENS)
    try:
        yield
    finally:
        chunked_logprob.TOKEN_CHUNK_SIZE = before


def tile_memory(device: torch.device, tokens: int, vocabulary: int, itemsize: int) -> int:
    """Bytes of a tile and its copies in the backward pass."""
    logits = min(vocabulary, TILE_LOGITS)
    if device.type in ("cuda", "xpu"):
        return min(tokens, chunked_logprob.TOKEN_CHUNK_SIZE) * logits * itemsize
    return FOLDED_COPIES * min(tokens, TILE_TOKENS) * logits * 4
