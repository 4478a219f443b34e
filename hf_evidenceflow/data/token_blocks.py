"""Rows of equal length over shards of token ids that stay on disk."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset


class TokenBlocks(Dataset):
    """
    The concatenation of shards, cut every `block_size` tokens; a row may lie in several shards. What is left over at
    the end is dropped, as by [`~hf_evidenceflow.data.packing.pack_rows`].

    Args:
        shards (`Sequence[np.ndarray]`):
            Token ids, each of shape `(tokens,)`; memory-mapped ones are read row by row.
        block_size (`int`):
            Tokens per row, 2 or more.

    Raises:
        `ValueError`: if `block_size` is below 2, or the shards do not fill one row.
    """

    def __init__(self, shards: Sequence[np.ndarray], block_size: int):
        if block_size < 2:
            raise ValueError(f"`block_size` must be at least 2, got {block_size}.")
        self.shards = list(shards)
        self.block_size = block_size
        self.ends = np.cumsum([len(shard) for shard in self.shards])
        if not self.shards or self.ends[-1] < block_size:
            tokens = int(self.ends[-1]) if self.shards else 0
            raise ValueError(
                f"{tokens} tokens do not fill one row of `block_size={block_size}`. Choose a smaller one."
            )

    def __len__(self) -> int:
        return int(self.ends[-1]) // self.block_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        start, stop = index * self.block_size, (index + 1) * self.block_size
        first = int(np.searchsorted(self.ends, start, side="right"))
        parts = []
        for shard, end in zip(self.shards[first:], self.ends[first:]):
            begin = end - len(shard)
            parts.append(shard[max(start - begin, 0) : stop - begin])
            if stop <= end:
                break
        row = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        return {"input_ids": row, "labels": row}
