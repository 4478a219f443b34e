"""
The bookkeeping of PagedAttention: sequences as lists of blocks that they may share.

Kwon et al. 2023 (vLLM, 2309.06180), sections 4.1 to 4.4. A cache that is laid out row by row must hold room for the
longest sequence in every row. Here it is cut into blocks of a few tokens, and a sequence has a table of block numbers,
as a process has a page table. So no more than the last block of a sequence is partly empty, samples of one prompt
share its blocks until one of them writes (copy-on-write), and a prompt that begins as an earlier one finds the blocks
of that one.

No tensors here: the keys and values are kept by `paged_cache.py`.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence


class OutOfBlocksError(RuntimeError):
    """No block is free. A scheduler answers by letting a sequence wait."""


class BlockPool:
    """
    Blocks with the number of sequences that hold each of them.

    A block that nobody holds is free but keeps its content until it is handed out again, the longest free one first,
    so that a later prompt may still find it.

    Args:
        num_blocks (`int`):
            Blocks in all.
        block_size (`int`):
            Tokens a block.

    Raises:
        `ValueError`: if one of them is not positive.
    """

    def __init__(self, num_blocks: int, block_size: int):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"`num_blocks` and `block_size` must be at least 1, got {num_blocks} and {block_size}.")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.holders = [0] * num_blocks
        self._free = OrderedDict.fromkeys(range(num_blocks))
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - len(self._free)

    @property
    def shared_blocks(self) -> int:
        """Blocks that several sequences hold."""
        return sum(holders > 1 for holders in self.holders)

    @property
    def saved_blocks(self) -> int:
        """Blocks that would be needed in addition if nothing were shared."""
        return sum(holders - 1 for holders in self.holders if holders > 1)

    def allocate(self) -> int:
        """
        Hand out a free block.

        Returns:
            `int`: its number; its former content is forgotten.

        Raises:
            [`OutOfBlocksError`]: if there is none.
        """
        if not self._free:
            raise OutOfBlocksError(
                f"All {self.num_blocks} blocks of {self.block_size} tokens are in use. Raise `num_blocks`, or let "
                "fewer sequences run at a time."
            )
        block, _ = self._free.popitem(last=False)
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        self.holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Let one more sequence hold a block."""
        if self.holders[block] == 0:
            del self._free[block]
        self.holders[block] += 1

    def release(self, block: int) -> None:
        """
        Let one sequence less hold a block.

        Raises:
            `RuntimeError`: if nobody holds it.
        """
        if self.holders[block] == 0:
            raise RuntimeError(f"Block {block} was released more often than it was held.")
        self.holders[block] -= 1
        if self.holders[block] == 0:
            self._free[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Let others find a full block by the digest of all tokens up to its end. The first one to have it stays."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def find(self, digest: bytes) -> int | None:
        """The block with this content, in use or free; `None` if there is none."""
        return self._block_of.get(digest)


class BlockTable:
    """
    The blocks of one sequence.

    Args:
        pool ([`BlockPool`]):
            Where they come from.

    Attributes:
        blocks (`list[int]`):
            Block numbers in the order of the sequence.
        length (`int`):
            Tokens written.
    """

    def __init__(self, pool: BlockPool):
        self.pool = pool
        self.blocks: list[int] = []
        self.length = 0
        self._digests: list[bytes] = []

    def blocks_needed(self, tokens: int) -> int:
        """Free blocks that [`append`] of so many tokens takes, with the one that a shared end is copied to."""
        return (
            math.ceil((self.length + tokens) / self.pool.block_size) - len(self.blocks) + self._writes_shared(tokens)
        )

    def append(self, tokens: int) -> tuple[list[int], tuple[int, int] | None]:
        """
        Make room for further tokens.

        Args:
            tokens (`int`):
                How many.

        Returns:
            `tuple[list[int], tuple[int, int] | None]`: a slot for each token, `block * block_size + offset`; and, if
            the partly filled last block was shared, the block to copy from and to before they are written.

        Raises:
            [`OutOfBlocksError`]: if there are too few free blocks; nothing has changed then.
        """
        needed = self.blocks_needed(tokens)
        if needed > self.pool.free_blocks:
            raise OutOfBlocksError(
                f"{tokens} tokens need {needed} more blocks, but {self.pool.free_blocks} of {self.pool.num_blocks} "
                "are free. Raise `num_blocks`, or let fewer sequences run at a time."
            )
        copy = None
        if self._writes_shared(tokens):
            copy = self.blocks[-1], self.pool.allocate()
            self.pool.release(self.blocks[-1])
            self.blocks[-1] = copy[1]
        size, end = self.pool.block_size, self.length + tokens
        while len(self.blocks) * size < end:
            self.blocks.append(self.pool.allocate())
        slots = [self.blocks[place // size] * size + place % size for place in range(self.length, end)]
        self.length = end
        return slots, copy

    def slots(self) -> list[int]:
        """Where the sequence's tokens are, in its order."""
        size = self.pool.block_size
        return [self.blocks[place // size] * size + place % size for place in range(self.length)]

    def fork(self) -> "BlockTable":
        """A second sequence with the same past. It holds the same blocks; whoever writes first gets a copy."""
        table = BlockTable(self.pool)
        table.blocks, table.length, table._digests = list(self.blocks), self.length, list(self._digests)
        for block in table.blocks:
            self.pool.hold(block)
        return table

    def take_prefix(self, tokens: Sequence[int]) -> int:
        """
        Begin with the blocks of earlier sequences that start with the same tokens. At least one token is left over, as
        the model must run on one to give the next.

        Args:
            tokens (`Sequence[int]`):
                Tokens of the prompt.

        Returns:
            `int`: how many of them are in the cache, a multiple of the block size.

        Raises:
            `RuntimeError`: if the table holds blocks already.
        """
        if self.blocks:
            raise RuntimeError("A prefix can be taken by an empty table only.")
        for digest in self._digests_of(tokens[: len(tokens) - 1]):
            block = self.pool.find(digest)
            if block is None:
                break
            self.pool.hold(block)
            self.blocks.append(block)
            self._digests.append(digest)
        self.length = len(self.blocks) * self.pool.block_size
        return self.length

    def publish(self, tokens: Sequence[int]) -> None:
        """
        Let later prompts find the full blocks. Call it when their keys and values are written.

        Args:
            tokens (`Sequence[int]`):
                The sequence; tokens behind `length` are passed over.
        """
        known = len(self._digests)
        self._digests = self._digests_of(tokens[: self.length], self._digests)
        for block, digest in zip(self.blocks[known:], self._digests[known:]):
            self.pool.publish(block, digest)

    def free(self) -> None:
        """Give all blocks back. A second call does nothing."""
        # The last ones first: what is handed out again first is then the end, and the beginning can still be found
        for block in reversed(self.blocks):
            self.pool.release(block)
        self.blocks, self.length, self._digests = [], 0, []

    def _writes_shared(self, tokens: int) -> bool:
        partly_filled = self.length % self.pool.block_size != 0
        return tokens > 0 and partly_filled and self.pool.holders[self.blocks[-1]] > 1

    def _digests_of(self, tokens: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
        # A block's keys and values depend on everything before it, and so does its digest
        size, digests = self.pool.block_size, list(known)
        for start in range(len(digests) * size, len(tokens) - size + 1, size):
            content = ",".join(map(str, tokens[start : start + size])).encode()
            digests.append(hashlib.sha256((digests[-1] if digests else b"") + content).digest())
        return digests
