"""How good an exit is: one pass for all fixed depths, one parallel pass for each confidence threshold.

Shapes: B rows, T positions, N valid positions, V vocabulary, L layers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..evaluation.statistics import ratio_interval
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
    `tokens` were measured. `perplexity_95` and `agreement_95` are intervals over the rows of the text.
    """

    depth: float
    perplexity: float
    accuracy: float
    agreement: float
    tokens: int
    perplexity_95: tuple[float, float]
    agreement_95: tuple[float, float]


class _Sums:
    def __init__(self):
        self.parts = []  # loss, right, agreeing, depth and row of each token, [5, N]

    def add(self, logits, labels, full_choice, depths, rows):
        logits = at_least_float32(logits)
        choice = logits.argmax(-1)
        loss = F.cross_entropy(logits, labels, reduction="none")
        columns = (loss, choice == labels, choice == full_choice, depths, rows)
        self.parts.append(torch.stack([column.double() for column in columns]).cpu())

    def quality(self):
        tokens = torch.cat(self.parts, dim=1) if self.parts else torch.empty(5, 0)
        if not tokens.shape[1]:
            raise ValueError("The batches hold no token with a next token to predict. Check labels and masks.")
        loss, right, agreeing, depth, rows = tokens
        counts = rows.long().bincount()
        counted = counts > 0
        intervals = [
            ratio_interval(rows.long().bincount(column)[counted].tolist(), counts[counted].tolist())
            for column in (loss, agreeing)
        ]
        return ExitQuality(
            depth.mean().item(),
            _exp(loss.mean().item()),
            right.mean().item(),
            agreeing.mean().item(),
            tokens.shape[1],
            (_exp(intervals[0].low), _exp(intervals[0].high)),
            (intervals[1].low, intervals[1].high),
        )


def _exp(loss: float) -> float:
    return math.exp(loss) if not loss >= 700 else math.inf


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
    first = 0
    for batch in batches:
        inputs, index, labels = _prepare(profile.parts.model, batch)
        rows = first + index // inputs["input_ids"].shape[1]
        first += len(inputs["input_ids"])
        with record_layer_states(profile.parts) as states:
            profile.parts.model(**inputs, use_cache=False)
        states = states[:: len(states) // profile.num_layers]
        flat = {depth: states[depth - 1].flatten(0, 1)[index] for depth in {*depths, profile.num_layers}}  # [N, H]
        for start in range(0, len(labels), chunk_size):
            chunk = slice(start, start + chunk_size)
            full_choice = readout(flat[profile.num_layers][chunk]).argmax(-1)
            for depth, total in sums.items():
                logits = readout(flat[depth][chunk])
                total.add(logits, labels[chunk], full_choice, torch.full_like(full_choice, depth), rows[chunk])
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
    sums, first = [_Sums() for _ in configs], 0
    for batch in batches:
        inputs, index, labels = _prepare(base, batch)
        rows = first + index // inputs["input_ids"].shape[1]
        first += len(inputs["input_ids"])
        full_choice = base(**inputs, use_cache=False).logits.flatten(0, 1)[index].argmax(-1)
        for config, total in zip(configs, sums):
            exits = simulate_early_exit(base, inputs["input_ids"], config, inputs.get("attention_mask"), prompt_length)
            total.add(exits.logits.flatten(0, 1)[index], labels, full_choice, exits.depths.flatten()[index], rows)
    return [total.quality() for total in sums]


def _prepare(model, batch):
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels", inputs["input_ids"])
    index, labels = next_token_targets(labels, inputs.get("attention_mask"), inputs.get("position_ids"))
    return inputs, index, labels
