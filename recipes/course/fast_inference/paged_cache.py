"""
Keys and values in blocks, as a cache that any causal LM of transformers takes.

A layer stores the keys of a batch in the slots that the block tables give, and hands the model the keys of each row
gathered in order. A kernel made for it (vLLM's) reads the blocks where they are; here they are copied together, which
costs time but no other code than this. B rows, H key-value heads, T positions, D dimensions of a head.
"""

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from hf_evidenceflow.recipes.course.fast_inference.block_table import BlockPool, BlockTable


class PagedLayer(CacheLayerMixin):
    """
    Keys and values of one layer, all blocks one behind the other: `(num_blocks * block_size, H, D)`.

    Args:
        cache ([`PagedCache`]):
            The cache that it belongs to, which knows the slots.
    """

    is_sliding = False

    def __init__(self, cache: "PagedCache"):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        slots = self._cache.pool.num_blocks * self._cache.pool.block_size
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(slots, key_states.shape[1], key_states.shape[3])
        self.values = value_states.new_zeros(slots, value_states.shape[1], value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `(B, H, new, D)` to the slots of the pass; returns all of the rows, `(B, H, T, D)`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        written, read = self._cache.written_slots, self._cache.read_slots
        self.keys[written] = key_states.transpose(1, 2)  # [B, new, H, D]
        self.values[written] = value_states.transpose(1, 2)
        return self.keys[read].transpose(1, 2), self.values[read].transpose(1, 2)

    def copy_block(self, source: int, target: int) -> None:
        """Copies a block's keys and values."""
        if self.is_initialized:
            size = self._cache.pool.block_size
            for states in (self.keys, self.values):
                states[target * size : (target + 1) * size] = states[source * size : (source + 1) * size]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.read_slots.shape[1], 0

    def get_seq_length(self) -> int:
        return self._cache.read_slots.shape[1] - self._cache.written_slots.shape[1]

    def get_max_length(self) -> int:
        return self._cache.pool.num_blocks * self._cache.pool.block_size

    def reset(self) -> None:
        self.is_initialized, self.keys, self.values = False, None, None


class PagedCache(Cache):
    """
    The paged cache of a model. Call [`prepare`] before each pass.

    Args:
        num_layers (`int`):
            Layers of the model.
        num_blocks (`int`):
            Blocks of each layer.
        block_size (`int`, *optional*, defaults to `16`):
            Tokens a block.

    Attributes:
        pool ([`BlockPool`]):
            The blocks.
        copied_blocks (`int`):
            Blocks copied on a write so far.

    Example:

    ```python
    >>> cache = PagedCache(model.config.num_hidden_layers, num_blocks=64)
    >>> table = BlockTable(cache.pool)
    >>> inputs = cache.prepare([table], [prompt])
    >>> logits = model(**inputs, past_key_values=cache).logits
    ```
    """

    def __init__(self, num_layers: int, num_blocks: int, block_size: int = 16):
        self.pool = BlockPool(num_blocks, block_size)
        self.copied_blocks = 0
        super().__init__(layers=[PagedLayer(self) for _ in range(num_layers)])

    def prepare(self, tables: Sequence[BlockTable], tokens: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """
        Make room for the next tokens of some sequences, and copy shared blocks that they write to.

        Args:
            tables (`Sequence[BlockTable]`):
                The B sequences of the pass, of any lengths.
            tokens (`Sequence[Sequence[int]]`):
                Their next tokens, the same number for each.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids` `(B, new)`, `attention_mask` `(B, T)` and `position_ids`
            `(B, new)` for the model, shorter rows padded on the left.

        Raises:
            [`OutOfBlocksError`]: if there are too few free blocks for all; sequences before it have their room.
            `ValueError`: if the rows have different numbers of tokens.
        """
        new = len(tokens[0])
        if any(len(row) != new for row in tokens):
            raise ValueError(f"Rows of one pass need as many tokens each, got {[len(row) for row in tokens]}.")
        written = []
        for table in tables:
            slots, copy = table.append(new)
            written.append(slots)
            if copy is not None:
                self.copied_blocks += 1
                for layer in self.layers:
                    layer.copy_block(*copy)
        longest = max(table.length for table in tables)
        padding = [longest - table.length for table in tables]
        self.written_slots = torch.tensor(written)
        # A padded place reads slot 0, and the mask takes it out
        self.read_slots = torch.tensor([[0] * pad + table.slots() for pad, table in zip(padding, tables)])
        mask = torch.tensor([[0] * pad + [1] * table.length for pad, table in zip(padding, tables)])
        positions = torch.tensor([range(table.length - new, table.length) for table in tables])
        return {"input_ids": torch.tensor(tokens), "attention_mask": mask, "position_ids": positions}
