"""
Puts token ids of documents into rows of one length.

Shapes: N tokens of D documents in all, R rows, T tokens per row.
"""

import heapq

import numpy as np
import torch
from torch.utils.data import Dataset


IGNORE_INDEX = -100
PACKINGS = ("blocks", "documents", "none")


class TokenRows(Dataset):
    """
    Rows of equal length as a map-style dataset, from columns of shape `(R, T)` by the names under which the model
    takes them. Without `labels` the labels are the `input_ids`.
    """

    def __init__(self, **columns: np.ndarray):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {name: torch.from_numpy(column[index].astype(np.int64)) for name, column in self.columns.items()}
        row.setdefault("labels", row["input_ids"])
        return row


def pack_rows(
    ids: np.ndarray, ends: np.ndarray, block_size: int, packing: str = "blocks", pad_token_id: int = 0
) -> TokenRows:
    """
    Puts documents into rows of `block_size` tokens.

    Args:
        ids (`np.ndarray` of shape `(N,)`):
            Token ids of all documents, each with its EOS.
        ends (`np.ndarray` of shape `(D,)`):
            Where each document ends.
        block_size (`int`):
            Tokens per row, 2 or more.
        packing (`str`, *optional*, defaults to `"blocks"`):
            `blocks` cuts the stream of all documents every `block_size` tokens and drops the rest. `documents` packs
            whole documents best-fit, longer ones in pieces, with positions that start at 0 in each: most models of
            transformers then let no attention cross a border. `none` gives each document its own row, cut at
            `block_size` and padded.
        pad_token_id (`int`, *optional*, defaults to `0`):
            Fills rows; fillers have the label -100.

    Returns:
        [`TokenRows`]: `input_ids` and `labels`; with `documents` also `position_ids`, with `none` also
        `attention_mask`.

    Raises:
        `ValueError`: if `packing` is not known, `block_size` is below 2, or the text does not fill one block.
    """
    if packing not in PACKINGS:
        raise ValueError(f"`packing` must be one of {', '.join(PACKINGS)}, got {packing!r}.")
    if block_size < 2:
        raise ValueError(f"`block_size` must be at least 2, got {block_size}.")
    if packing == "blocks":
        rows = len(ids) // block_size
        if rows == 0:
            raise ValueError(
                f"The text has {len(ids)} tokens, fewer than one block of {block_size}. Take a smaller `block_size`, "
                "more text, or `packing=documents`."
            )
        return TokenRows(input_ids=ids[: rows * block_size].reshape(rows, block_size))

    starts = np.concatenate([[0], ends[:-1]])
    if packing == "none":
        bins = [[(start, min(end, start + block_size))] for start, end in zip(starts, ends)]
        columns = _fill_rows(ids, bins, block_size, pad_token_id)
        columns.pop("position_ids")
        return TokenRows(**columns)
    pieces = [
        (first, min(end, first + block_size))
        for start, end in zip(starts, ends)
        for first in range(start, end, block_size)
    ]
    columns = _fill_rows(ids, _best_fit(pieces, block_size), block_size, pad_token_id)
    columns.pop("attention_mask")
    return TokenRows(**columns)


def _fill_rows(ids: np.ndarray, bins: list[list[tuple[int, int]]], block_size: int, pad_token_id: int) -> dict:
    """The columns of rows that hold the pieces of the bins, one after the other."""
    shape = (len(bins), block_size)
    input_ids = np.full(shape, pad_token_id, dtype=np.int32)
    labels = np.full(shape, IGNORE_INDEX, dtype=np.int32)
    position_ids = np.zeros(shape, dtype=np.int32)
    filled = np.zeros(shape, dtype=np.int32)
    for row, members in enumerate(bins):
        at = 0
        for start, end in members:
            stop = at + end - start
            input_ids[row, at:stop] = ids[start:end]
            # The first token of a piece has nothing before it in its row that could predict it
            labels[row, at + 1 : stop] = ids[start + 1 : end]
            position_ids[row, at:stop] = np.arange(end - start)
            filled[row, at:stop] = 1
            at = stop
        position_ids[row, at:] = np.arange(block_size - at)  # the fillers are a document of their own
    return {"input_ids": input_ids, "labels": labels, "attention_mask": filled, "position_ids": position_ids}


def _best_fit(pieces: list[tuple[int, int]], block_size: int) -> list[list[tuple[int, int]]]:
    """Longest piece first, each into the fullest row that has room for it, the earliest of several."""
    # Not TRL's `pack_dataset` (bfd_split): among rows with equal room it takes another one, so that 54 of 300 random
    # corpora came out as other token ids, in the same number of rows
    bins: list[list[tuple[int, int]]] = []
    with_room: dict[int, list[int]] = {}  # room -> rows, the earliest first
    for start, end in sorted(pieces, key=lambda piece: piece[0] - piece[1]):
        length = int(end - start)
        room = next((room for room in range(length, block_size) if with_room.get(room)), None)
        if room is None:
            row, room = len(bins), block_size
            bins.append([])
        else:
            row = heapq.heappop(with_room[room])
        bins[row].append((start, end))
        heapq.heappush(with_room.setdefault(room - length, []), row)
    return bins
