"""ELMo's weighted sum of layers, learnt by the task that uses them.

    ELMo_k = gamma * sum_j s_j h_(k,j),   s = softmax(a)

Source: Peters et al. 2018 (arXiv 1802.05365, equation 1).
"""

import torch
from torch import nn


class ScalarMix(nn.Module):
    """
    Mix the layers of a word into one vector. At first all have the same weight, and gamma is 1: their mean.

    Args:
        layers (`int`):
            Number of layers L, the word's own vector among them.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(()))

    @property
    def weights(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(L,)`: the weights s_j, which sum to 1."""
        return self.scores.softmax(0)

    def forward(self, layers: torch.Tensor) -> torch.Tensor:
        """
        Args:
            layers (`torch.Tensor` of shape `(..., L, H)`):
                States of each layer.

        Returns:
            `torch.Tensor` of shape `(..., H)`: the mix.
        """
        if layers.shape[-2] != len(self.scores):
            raise ValueError(f"`layers` must have {len(self.scores)} layers in dimension -2, got {layers.shape[-2]}.")
        return self.gamma * (self.weights[:, None] * layers).sum(-2)
