"""Rows over shards: none lost, none twice, wherever a shard ends."""

import numpy as np
import pytest

from hf_evidenceflow.data.packing import pack_rows
from hf_evidenceflow.data.token_blocks import TokenBlocks


@pytest.mark.parametrize("sizes", [[23], [1, 2, 20], [5, 10, 8], [0, 12, 0, 0, 11], [4] * 5 + [3]])
def test_rows_are_those_of_the_whole_stream(sizes):
    ids = np.arange(sum(sizes), dtype=np.uint16)
    shards = np.split(ids, np.cumsum(sizes)[:-1])
    blocks, rows = TokenBlocks(shards, 5), pack_rows(ids, np.array([len(ids)]), 5)
    assert len(blocks) == len(rows) == 4
    for index in range(4):
        assert blocks[index]["input_ids"].tolist() == rows[index]["input_ids"].tolist()
        assert blocks[index]["labels"].tolist() == blocks[index]["input_ids"].tolist()


def test_there_is_no_row_behind_the_last():
    blocks = TokenBlocks([np.arange(12)], 5)
    with pytest.raises(IndexError, match="Row 2 of 2"):
        blocks[2]


@pytest.mark.parametrize(
    "shards, size, message",
    [([np.arange(3)], 1, "at least 2, got 1"), ([np.arange(3)], 4, "3 tokens do not fill one row")],
)
def test_bad_sizes_are_refused(shards, size, message):
    with pytest.raises(ValueError, match=message):
        TokenBlocks(shards, size)
