"""Words from their characters: convolutions of several widths, the largest value of each filter, highway layers.

Sources: Kim et al. 2016 (arXiv 1508.06615), Srivastava et al. 2015 (highway networks, 1505.00387), Peters et al. 2018
(ELMo, 1802.05365, section 3.4).

Shapes: B rows, T words, C characters of a word, E size of a character, F filters, H size of a word.
"""

from collections.abc import Sequence

import torch
from torch import nn


class HighwayGate(nn.Linear):
    """A gate that begins mostly closed: its bias is -1."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.bias, -1.0)


class Highway(nn.Module):
    """
    A layer that may let its input pass: y = t * relu(W x + b) + (1 - t) * x with the gate t = sigmoid(W_t x + b_t).

    Args:
        size (`int`):
            Size F of input and output.
    """

    def __init__(self, size: int):
        super().__init__()
        self.transform = nn.Linear(size, size)
        self.gate = HighwayGate(size, size)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        gate = self.gate(inputs).sigmoid()
        return gate * self.transform(inputs).relu() + (1 - gate) * inputs


class CharacterEncoder(nn.Module):
    """
    The vector of a word from its characters alone; it knows no context, and no word is unknown to it.

    Args:
        characters (`int`):
            Kinds of characters. 0 is padding, whose embedding is 0.
        character_size (`int`):
            Size E of a character's embedding.
        filters (`Sequence[tuple[int, int]]`):
            Width and number of filters; the numbers sum to F.
        highway_layers (`int`):
            Highway layers.
        hidden_size (`int`):
            Size H of a word.
    """

    def __init__(
        self,
        characters: int,
        character_size: int,
        filters: Sequence[tuple[int, int]],
        highway_layers: int,
        hidden_size: int,
    ):
        super().__init__()
        self.embedding = nn.Embedding(characters, character_size, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(character_size, count, width) for width, count in filters)
        total = sum(count for _, count in filters)
        self.highways = nn.ModuleList(Highway(total) for _ in range(highway_layers))
        self.projection = nn.Linear(total, hidden_size)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """
        Args:
            characters (`torch.Tensor` of shape `(B, T, C)`):
                Characters of each word, padded with 0 to the right.

        Returns:
            `torch.Tensor` of shape `(B, T, H)`: a vector for each word.
        """
        rows, words, length = characters.shape
        embedded = self.embedding(characters.reshape(rows * words, length)).transpose(1, 2)  # [B T, E, C]
        pooled = [convolution(embedded).amax(-1) for convolution in self.convolutions]
        states = torch.cat(pooled, dim=-1).relu()  # [B T, F]
        for highway in self.highways:
            states = highway(states)
        return self.projection(states).view(rows, words, -1)
