"""Batches for T5's pretraining: a new corruption of the rows each time that they are taken."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_corruption import corrupt, random_spans_mask


IGNORE_INDEX = -100


class SpanCorruptionCollator:
    """
    Corrupts rows of token ids and pads them to a batch. The model makes its decoder inputs from the labels.

    Args:
        sentinels (`Sequence[int]`):
            Ids of `<extra_id_0>`, `<extra_id_1>`, ...
        eos (`int`):
            Ends inputs and targets.
        pad (`int`):
            Fills the inputs; the labels are filled with -100.
        noise_density (`float`, *optional*, defaults to `0.15`):
            Share of the tokens that is masked.
        mean_span_length (`float`, *optional*, defaults to `3.0`):
            Mean length of a masked span.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the collator's own generator: what else draws random numbers does not change the spans.

    Raises:
        `ValueError`: if there are no sentinels, or one of them, EOS and padding is used twice.

    Example:

    ```python
    >>> collator = SpanCorruptionCollator(sentinels=[7, 8], eos=2, pad=1)
    >>> collator([{"input_ids": [10, 11, 12, 13, 14, 15, 16]}]).keys()
    dict_keys(['input_ids', 'attention_mask', 'labels'])
    ```
    """

    def __init__(
        self,
        sentinels: Sequence[int],
        eos: int,
        pad: int,
        noise_density: float = 0.15,
        mean_span_length: float = 3.0,
        seed: int = 0,
    ):
        sentinels = [int(token) for token in sentinels]
        if not sentinels or len({*sentinels, eos, pad}) != len(sentinels) + 2:
            raise ValueError(
                f"`sentinels`, `eos` and `pad` must be different ids, and at least one a sentinel, got {sentinels}, "
                f"{eos} and {pad}."
            )
        self.sentinels, self.eos, self.pad = sentinels, eos, pad
        self.noise_density, self.mean_span_length = noise_density, mean_span_length
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows (`Sequence[Mapping]`):
                Rows with `input_ids`; of other columns no use is made. No row is padded.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids` and `attention_mask` of the longest input's length, `labels` of the
            longest target's.
        """
        pairs = []
        for row in rows:
            ids = torch.as_tensor(row["input_ids"])
            mask = random_spans_mask(len(ids), self.noise_density, self.mean_span_length, self.generator)
            pairs.append(corrupt(ids.tolist(), mask.tolist(), self.sentinels, self.eos))
        inputs, targets = zip(*pairs)
        ones = [[1] * len(tokens) for tokens in inputs]
        return {
            "input_ids": _stack(inputs, self.pad),
            "attention_mask": _stack(ones, 0),
            "labels": _stack(targets, IGNORE_INDEX),
        }


def _stack(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
