"""Rows that share prompts as one packed row: each prompt once, its completions behind it, none seeing another.

A completion's part begins with the last token of its prompt, whose output predicts the first token of the completion;
the prompt's own part leaves that token out. Attention is split, so that it costs what the padded rows' would: a prompt
over itself, and a group's completions, as a batch, over their prompt and each over itself.

Shapes: B rows, P prompt columns, C completion columns, T packed positions, A heads, K key-value heads, D head size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class PackedGroup:
    """Where a prompt, but for its last token, and the parts of its completions lie in the packed row."""

    prompt: slice
    members: list[slice]
    mask: torch.Tensor  # [1, 1, L, p + L], L the longest part

    def attend(self, query, key, value, scaling: float) -> Iterator[torch.Tensor]:
        """Outputs `(A, n, D)` of the group's positions in their order, from heads-first `(A, T, D)` of the row."""
        length = self.prompt.stop - self.prompt.start
        if length:
            own = [tensor[None, :, self.prompt] for tensor in (query, key, value)]
            yield F.scaled_dot_product_attention(*own, is_causal=True, scale=scaling)[0]
        queries, keys, values = (
            pad_sequence([tensor[:, part].transpose(0, 1) for part in self.members], batch_first=True).transpose(1, 2)
            for tensor in (query, key, value)
        )
        if length:
            count = len(self.members)
            keys, values = (
                torch.cat([tensor[None, :, self.prompt].expand(count, -1, -1, -1), own], dim=2)
                for tensor, own in ((key, keys), (value, values))
            )
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask, scale=scaling)
        for part, output in zip(self.members, attended):
            yield output[:, : part.stop - part.start]


@dataclass(frozen=True)
class PackedPrompts:
    """
    A packed row and where its values belong. Made by [`pack_prompts`].

    Attributes:
        ids, positions, labels (`torch.Tensor` of shape `(1, T)`):
            Token ids, their places in the rows that they come from, and the token that follows each position in a
            completion, -100 elsewhere.
        places, sources (`torch.Tensor` of shape `(n,)`):
            Packed positions of the completion tokens, and their places in a flattened `(B, C)`.
        groups (`list[PackedGroup]`):
            One after the other.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    sources: torch.Tensor
    groups: list[PackedGroup]

    def attend(self, query, key, value, scaling: float) -> torch.Tensor:
        """Output `(1, T, A, D)` of queries `(1, A, T, D)` over keys and values `(1, K, T, D)`."""
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        parts = [part for group in self.groups for part in group.attend(query[0], key[0], value[0], scaling)]
        return torch.cat(parts, dim=1).transpose(0, 1)[None]

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
    ids, positions, labels, places, sources, packed = [], [], [], [], [], []
    for prompt, members in groups:
        shared = slice(len(ids), len(ids) + len(prompt) - 1)
        ids += prompt[:-1]
        positions += range(len(prompt) - 1)
        labels += [-100] * (len(prompt) - 1)
        parts = []
        for row, completion in members:
            part = slice(len(ids), len(ids) + 1 + len(completion))
            ids += [prompt[-1], *completion]
            positions += range(len(prompt) - 1, len(prompt) + len(completion))
            labels += [*completion, -100]
            places += range(part.start + 1, part.stop)
            sources += range(row * columns, row * columns + len(completion))
            parts.append(part)
        longest = max(part.stop - part.start for part in parts)
        own = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        mask = torch.cat([own.new_ones(longest, len(prompt) - 1), own], dim=1)[None, None]
        packed.append(PackedGroup(shared, parts, mask))
    tensors = [torch.tensor(values, device=device) for values in (ids, positions, labels, places, sources)]
    return PackedPrompts(*(tensor[None] for tensor in tensors[:3]), *tensors[3:], packed)
