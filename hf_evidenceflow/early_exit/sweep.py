"""How good an exit is: one pass for all fixed depths, one parallel pass for each confidence threshold.

Shapes: B rows, T positions, N valid positions, V vocabulary, L layers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..losses.layers import layer_selection
from ..losses.next_token import next_token_targets
from ..losses.tokens import at_least_float32
from ..models.decoder import record_layer_states
from .criteria import EarlyExitConfig
from .generation import simulate_early_exit
from .layer_calls import profile_layers


@dataclass(frozen=True)
class ExitQuality:
    """
    What a model is worth that leaves early.

    `depth` is the number of layers that are run (with a criterion the mean over the tokens), `perplexity` that of the
    right next tokens, `accuracy` the share of tokens whose most probable next token is the right one, `agreement` the
    share where it is the full model's: what greedy self-speculation can expect to accept of a draft's first token.
    `tokens` were measured.
    """

    depth: float
    perplexity: float
    accuracy: float
    agreement: float
    tokens: int


class _Sums:
    def __init__(self):
        self.loss = self.right = self.agreeing = self.depth = 0.0
        self.tokens = 0

    def add(self, logits, labels, full_choice, depths):
        logits = at_least_float32(logits)
        choice = logits.argmax(-1)
        self.loss += F.cross_entropy(logits, labels, reduction="sum").item()
        self.right += (choice == labels).sum().item()
        self.agreeing += (choice == full_choice).sum().item()
        self.depth += depths.sum().item()
        self.tokens += len(labels)

    def quality(self):
        if not self.tokens:
            raise ValueError("The batches hold no token with a next token to predict. Check labels and masks.")
        n = self.tokens
        try:
            perplexity = math.exp(self.loss / n)
        except OverflowError:
            perplexity = math.inf
        return ExitQuality(self.depth / n, perplexity, self.right / n, self.agreeing / n, n)


@torch.no_grad()
def exit_sweep(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    layers: str | Sequence[int] = "all",
    chunk_size: int = 256,
) -> list[ExitQuality]:
    """
    Measure the exit after each layer, all in one forward pass per batch.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal LM; put it in eval mode.
        batches (`Iterable[Mapping[str, torch.Tensor]]`):
            Inputs of the model with `input_ids` [B, T], perhaps `attention_mask`, `position_ids` and `labels` (else
            the ids). Moved to the model's device.
        layers (`str` or `Sequence[int]`, *optional*, defaults to `"all"`):
            Layers to leave after, as in [`layer_selection`].
        chunk_size (`int`, *optional*, defaults to `256`):
            Tokens that are read out at a time.

    Returns:
        `list[ExitQuality]`: shallow to deep.

    Raises:
        ValueError: if a layer does not exist, there is nothing to predict, or the model cannot be read out early.

    Example:

    ```python
    >>> for row in exit_sweep(model, [tokenizer(texts, padding=True, return_tensors="pt")]):
    ...     print(row.depth, row.perplexity, row.agreement)
    ```
    """
    profile = profile_layers(model)
    readout = profile.parts.readout
    depths = [layer + 1 for layer in layer_selection(layers, profile.num_layers)]
    sums = {depth: _Sums() for depth in depths}
    for batch in batches:
        inputs, index, labels = _prepare(profile.parts.model, batch)
        with record_layer_states(profile.parts) as states:
            profile.parts.model(**inputs, use_cache=False)
        states = states[:: len(states) // profile.num_layers]
        flat = {depth: states[depth - 1].flatten(0, 1)[index] for depth in {*depths, profile.num_layers}}  # [N, H]
        for start in range(0, len(labels), chunk_size):
            chunk = slice(start, start + chunk_size)
            full_choice = readout(flat[profile.num_layers][chunk]).argmax(-1)
            for depth, total in sums.items():
                logits = readout(flat[depth][chunk])
                total.add(logits, labels[chunk], full_choice, torch.full_like(full_choice, depth))
    return [total.quality() for total in sums.values()]


@torch.no_grad()
def threshold_sweep(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    configs: Sequence[EarlyExitConfig],
    prompt_length: int = 1,
) -> list[ExitQuality]:
    """
    Measure exit by each config's criterion, as [`simulate_early_exit`] computes it, on the batches of [`exit_sweep`].
    The first `prompt_length` positions run at full depth and are measured along.
    """
    base = profile_layers(model).parts.model
    sums = [_Sums() for _ in configs]
    for batch in batches:
        inputs, index, labels = _prepare(base, batch)
        full_choice = base(**inputs, use_cache=False).logits.flatten(0, 1)[index].argmax(-1)
        for config, total in zip(configs, sums):
            exits = simulate_early_exit(base, inputs["input_ids"], config, inputs.get("attention_mask"), prompt_length)
            total.add(exits.logits.flatten(0, 1)[index], labels, full_choice, exits.depths.flatten()[index])
    return [total.quality() for total in sums]


def _prepare(model, batch):
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels", inputs["input_ids"])
    index, labels = next_token_targets(labels, inputs.get("attention_mask"), inputs.get("position_ids"))
    return inputs, index, labels
