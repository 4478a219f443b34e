"""Rows that share prompts as one packed row: each prompt once, its completions behind it, none seeing another.

A completion's part begins with the last token of its prompt, whose output predicts the first token of the completion;
the prompt's own part leaves that token out. Attention is split, so that it never costs more than in the rows: a prompt
over itself, and each completion over its prompt and itself.

Shapes: B rows, P prompt columns, C completion columns, T packed positions, A heads, K key-value heads, D head size.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class PackedGroup:
    """Lengths of a prompt, but for its last token, and of the parts of its completions, which lie behind it."""

    prompt: int
    members: list[int]
    mask: torch.Tensor  # [1, 1, L, p + L], L the longest part

    @property
    def sizes(self) -> list[int]:
        return [self.prompt, *self.members]

    def attend(self, queries, keys, values, scaling: float, batched: bool) -> Iterator[torch.Tensor]:
        """Outputs `(n, A, D)` of prompt and completions, from their heads-first `(A, n, D)` and `(K, n, D)`."""
        grouped = len(keys[0]) < len(queries[0])
        attend = functools.partial(F.scaled_dot_product_attention, scale=scaling, enable_gqa=grouped)
        if self.prompt:
            own = (parts[0][None] for parts in (queries, keys, values))
            yield attend(*own, is_causal=True)[0].transpose(0, 1)
        count = len(self.members)
        size = count if batched else 1
        for start in range(1, count + 1, size):
            query, *own = (_stack(parts[start : start + size]) for parts in (queries, keys, values))
            prompts = (parts[0].expand(size, -1, -1, -1) for parts in (keys, values))
            key, value = map(functools.partial(torch.cat, dim=2), zip(prompts, own))
            output = attend(query, key, value, attn_mask=self.mask[..., : query.shape[2], : key.shape[2]])
            for part, attended in zip(queries[start:], output):
                yield attended[:, : part.shape[1]].transpose(0, 1)


def _stack(parts):
    """Parts `(A, n, D)` of a row as a batch `(G, A, L, D)`."""
    if len(parts) == 1:
        return parts[0][None]
    return pad_sequence([part.transpose(0, 1) for part in parts], batch_first=True).transpose(1, 2)


@dataclass(frozen=True)
class PackedPrompts:
    """
    A packed row and where its values belong. Made by [`pack_prompts`].

    Attributes:
        ids, positions (`torch.Tensor` of shape `(1, T)`):
            Token ids, and their places in the rows that they come from.
        places, sources (`torch.Tensor` of shape `(n,)`):
            Packed positions of the completion tokens, each behind the one that predicts it, and their places in a
            flattened `(B, C)`.
        groups (`list[PackedGroup]`):
            One after the other.
        batched (`bool`):
            Attend from all completions of a group in one call. One by one there is no padding, which on a CPU takes
            half of the time; elsewhere each call has its price.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    sources: torch.Tensor
    groups: list[PackedGroup]
    batched: bool

    def attend(self, query, key, value, scaling: float) -> torch.Tensor:
        """Output `(1, T, A, D)` of queries `(1, A, T, D)` over keys and values `(1, K, T, D)`."""
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1 and query.device.type != "cpu":  # only there kernels take a mask and fewer heads
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        sizes = [size for group in self.groups for size in group.sizes]
        # Slices would each have a gradient as long as the row
        query, key, value = (iter(tensor[0].split(sizes, dim=1)) for tensor in (query, key, value))
        attended = []
        for group in self.groups:
            parts = ([next(tensor) for _ in group.sizes] for tensor in (query, key, value))
            attended += group.attend(*parts, scaling, self.batched)
        return torch.cat(attended)[None]

    def gather(self, columns: torch.Tensor) -> torch.Tensor:
        """Values `(B, C, ...)` of completion tokens in the packed row, `(1, T, ...)`, 0 elsewhere."""
        flat = columns.flatten(0, 1)
        packed = flat.new_zeros(self.ids.shape[1], *flat.shape[1:])
        packed[self.places] = flat[self.sources]
        return packed[None]

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Stands for an attention mask, which this row has no need of: attention that used it would give NaN."""
        return torch.full((1, 1, 1, 1), torch.nan, dtype=dtype, device=self.ids.device)


def pack_prompts(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_columns: int,
    rows: Sequence[int] | None = None,
    max_tokens: int | None = None,
) -> list[PackedPrompts]:
    """
    Pack rows of prompts, padded on the left, and completions, padded on the right.

    Args:
        input_ids, attention_mask (`torch.Tensor` of shape `(B, P + C)`):
            The rows.
        completion_columns (`int`):
            C.
        rows (`Sequence[int]`, *optional*):
            The rows to pack; by default all.
        max_tokens (`int`, *optional*):
            Most positions of a packed row, which holds a prompt and a completion at least. `None`: all in one.
    """
    ids, used = input_ids.tolist(), attention_mask.tolist()
    start = input_ids.shape[1] - completion_columns
    members: dict[tuple, list[tuple[int, list[int]]]] = {}
    for row in range(len(ids)) if rows is None else rows:
        prompt = tuple(token for token, seen in zip(ids[row][:start], used[row][:start]) if seen)
        members.setdefault(prompt, []).append((row, ids[row][start : start + max(sum(used[row][start:]), 1)]))
    packs: list[list] = [[]]
    room = max_tokens
    for prompt, completions in members.items():
        piece: list = []
        for completion in completions:
            cost = len(completion[1]) + 1 + (0 if piece else len(prompt) - 1)
            if room is not None and cost > room and (piece or packs[-1]):
                if piece:
                    packs[-1].append((prompt, piece))
                    piece = []
                packs.append([])
                room, cost = max_tokens, len(completion[1]) + len(prompt)
            piece.append(completion)
            room = None if room is None else room - cost
        packs[-1].append((prompt, piece))
    return [_pack(groups, completion_columns, input_ids.device) for groups in packs if groups]


def _pack(groups, columns, device):
    ids, positions, places, sources, packed = [], [], [], [], []
    for prompt, members in groups:
        ids += prompt[:-1]
        positions += range(len(prompt) - 1)
        for row, completion in members:
            places += range(len(ids) + 1, len(ids) + 1 + len(completion))
            ids += [prompt[-1], *completion]
            positions += range(len(prompt) - 1, len(prompt) + len(completion))
            sources += range(row * columns, row * columns + len(completion))
        lengths = [1 + len(completion) for _, completion in members]
        longest = max(lengths)
        own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        mask = torch.cat([own.new_ones(longest, len(prompt) - 1), own], dim=1)[None, None]
        packed.append(PackedGroup(len(prompt) - 1, lengths, mask))
    ids, positions, places, sources = (
        torch.tensor(values, device=device) for values in (ids, positions, places, sources)
    )
    return PackedPrompts(ids[None], positions[None], places, sources, packed, device.type != "cpu")
