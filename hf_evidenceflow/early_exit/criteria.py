"""When a token leaves: the criteria of early exit and their settings.

`confidence` is the softmax response of CALM (Schuster et al. 2022, arXiv 2207.07061, section 3.5) with the top
probability in place of the gap to the second. `relative_change` is the saturation of the states themselves: it needs
no readout, so it costs next to nothing where the vocabulary is large.

Shapes: N tokens, H hidden size, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..losses.layers import layer_selection
from ..losses.tokens import at_least_float32


CRITERIA = ("confidence", "relative_change")


def confidence(
    states: torch.Tensor, readout: Callable[[torch.Tensor], torch.Tensor], chunk_size: int = 256
) -> torch.Tensor:
    """
    The largest next-token probability `[N]` of states `[N, H]` under a layer's own readout `[C, H] -> [C, V]` (final
    norm and head), of `chunk_size` tokens C at a time, in at least fp32.
    """
    chunks = []
    for chunk in states.split(chunk_size):
        logits = at_least_float32(readout(chunk))  # [C, V]
        chunks.append((logits.amax(-1) - logits.logsumexp(-1)).exp())
    return torch.cat(chunks)


def relative_change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How far a layer moved the states `[N, H]`: `|h_i - h_{i-1}| / |h_{i-1}|`, `[N]`, in at least fp32."""
    before, after = at_least_float32(before), at_least_float32(after)
    return (after - before).norm(dim=-1) / before.norm(dim=-1)


@dataclass(frozen=True)
class EarlyExitConfig:
    """
    When a generated token leaves the layers.

    Args:
        criterion (`str`, *optional*, defaults to `"confidence"`):
            `"confidence"`: the top probability of the layer's readout is at least the threshold.
            `"relative_change"`: the layer changed the state by at most the threshold, relative to its norm.
        threshold (`float`, *optional*, defaults to `0.9`):
            In [0, 1] for the confidence; at least 0 for the relative change.
        layers (`str` or `Sequence[int]`, *optional*, defaults to `"all"`):
            Layers after which a token may leave, as in [`layer_selection`]: `"all"`, `"every:k"`, `"last:k"` or ids
            from 0. Name here the layers that were supervised in training; each costs a readout under `"confidence"`.
        min_layer (`int`, *optional*, defaults to `0`):
            Layers before this id are no exits, whatever `layers` says.

    Raises:
        ValueError: if a value is out of its range.
    """

    criterion: str = "confidence"
    threshold: float = 0.9
    layers: str | Sequence[int] = "all"
    min_layer: int = 0

    def __post_init__(self):
        if self.criterion not in CRITERIA:
            raise ValueError(f"`criterion` must be one of {', '.join(map(repr, CRITERIA))}, got {self.criterion!r}.")
        highest = 1.0 if self.criterion == "confidence" else math.inf
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= highest):
            raise ValueError(
                f"`threshold` must be {'in [0, 1]' if highest == 1 else 'at least 0'} for the criterion "
                f"{self.criterion!r}, got {self.threshold}."
            )
        if self.min_layer < 0:
            raise ValueError(f"`min_layer` must be at least 0, got {self.min_layer}.")

    def exit_depths(self, num_layers: int) -> list[int]:
        """
        The depths (numbers of layers run), in rising order, at which a token may leave.

        Raises:
            ValueError: if a layer does not exist, or `min_layer` leaves none.
        """
        depths = [layer + 1 for layer in layer_selection(self.layers, num_layers) if layer >= self.min_layer]
        if not depths:
            raise ValueError(
                f"No layer is left to exit from: `layers` is {self.layers!r} and `min_layer` {self.min_layer}, the "
                f"model has {num_layers} layers."
            )
        return depths
