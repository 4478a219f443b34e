"""The terms of the supervised layers of one micro-batch, from the recorded states.

Shapes: B rows, T positions, H hidden size, V vocabulary, N valid positions, n of them drawn for a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from ..losses import NextTokenTargets, layer_selection, layer_weights, released_features
from ..losses.layers import enabled_layers, layer_skip_weights
from ..models.decoder import DecoderParts
from .config import LAYER_SKIP, EvidenceFlowConfig


def supervised_layers(config: EvidenceFlowConfig, num_layers: int) -> list[int]:
    """
    The ids, in rising order, of the layers that get a term; a looped block counts each of its loops.

    Raises:
        ValueError: if `layers` does not fit the model, or only the last layer is left, which has the model's own loss.
    """
    if config.objective == "nitp":
        if not 0 <= config.shallow_layer < num_layers - 1:
            raise ValueError(
                f"`shallow_layer` must be from 0 to {num_layers - 2} in a model of {num_layers} layers, got "
                f"{config.shallow_layer}."
            )
        return [num_layers - 1]
    layers = layer_selection(config.layers, num_layers)
    if config.traits.reads_out and isinstance(config.layers, str):
        layers = [layer for layer in layers if layer < num_layers - 1]
        if not layers:
            raise ValueError(
                f"`layers={config.layers!r}` names only the last of {num_layers} layers, which has the model's own "
                f"loss: {config.objective!r} needs others."
            )
    return layers


def term_weights(
    config: EvidenceFlowConfig, num_layers: int, step: int = 0, total_steps: int | None = None
) -> tuple[dict[int, float], float]:
    """
    The weights in an optimizer step: of each layer that has a term, by its id and before `config.weight_at`, and of
    the model's own loss.
    """
    layers = supervised_layers(config, num_layers)
    enabled = enabled_layers(config.layer_curriculum, layers, num_layers, step, total_steps or 0)
    weight = config.weight_at(step, total_steps)
    if config.layer_weights == LAYER_SKIP:
        weights, own = layer_skip_weights(enabled, num_layers, weight)
        return {layer: value / weight for layer, value in weights.items() if value}, own
    weights = dict(zip(layers, layer_weights(config.layer_weights, len(layers))))
    return {layer: weights[layer] for layer in enabled}, 1.0


def make_own_modules(
    config: EvidenceFlowConfig, parts: DecoderParts, num_layers: int, generator: torch.Generator
) -> nn.ModuleDict:
    """
    The objective's own modules, mostly none, on the device of the head and in fp32; the `generator`, on CPU, is the
    source of the weights of their linear layers.
    """
    vocab_size, hidden_size = parts.head.weight.shape
    make = config.traits.make_modules
    with torch.device("meta"):  # the constructors would draw from the global generator
        modules = {} if make is None else make(hidden_size, vocab_size, supervised_layers(config, num_layers))
    own = nn.ModuleDict(modules).to_empty(device=parts.head.weight.device).float()
    with torch.no_grad():
        for module in own.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=generator))
            elif isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
    return own


@dataclass
class LayerBatch:
    """
    What an objective sees of one micro-batch.

    Attributes:
        states (`Sequence[torch.Tensor]` of shape `(B, T, H)` each):
            States after each layer, before the final norm.
        index, labels (`torch.Tensor` of shape `(n,)`):
            Supervised positions in the flattened batch, and the right next tokens.
        layers (`list[int]`):
            Supervised layers.
        parts ([`~hf_evidenceflow.models.decoder.DecoderParts`]):
            Parts of the model, among them its `readout`.
        config ([`EvidenceFlowConfig`]):
            Settings.
        generator (`torch.Generator`):
            On CPU, for what the objective draws.
        own_modules (`nn.ModuleDict`):
            Modules of the objective's own.
        normalizer (`torch.Tensor` of shape `()` or `float`, *optional*):
            What the sum over the tokens is divided by; `None`: n.
    """

    states: Sequence[torch.Tensor]
    index: torch.Tensor
    labels: torch.Tensor
    layers: list[int]
    parts: DecoderParts
    config: EvidenceFlowConfig
    generator: torch.Generator
    own_modules: nn.ModuleDict
    normalizer: torch.Tensor | float | None = None

    def raw_states_at(self, layer: int, shift: int = 0) -> torch.Tensor:
        """The layer's states `[n, H]` at the supervised positions, or `shift` further on, before the final norm."""
        return self.states[layer].flatten(0, 1)[self.index + shift]

    def states_at(self, layer: int) -> torch.Tensor:
        """The layer's states `[n, h]`, h of the H features; behind the final norm with `apply_final_norm`."""
        states = self.raw_states_at(layer)
        if self.config.apply_final_norm:
            states = self.parts.normalize(states)
        return states[:, self._features(layer)]

    def target_at(self, layer: int) -> torch.Tensor:
        """The embeddings `[n, h]` of the right next tokens, as the settings choose them, in the same features."""
        return self._target[:, self._features(layer)]

    def _features(self, layer: int) -> slice:
        if not self.config.target_mask:
            return slice(None)
        return released_features(len(self.layers), self.layers.index(layer), self.states[layer].shape[-1])

    @cached_property
    def _target(self) -> torch.Tensor:
        if self.config.resolved_target == "output_embedding":
            rows = self.parts.head.weight[self.labels]
        else:
            # `forward`, since NEFTune's hook would add noise to the targets
            rows = self.parts.embeddings.forward(self.labels[None])[0]
        return rows.detach() if self.config.detach_target else rows


@dataclass
class LayerTerms:
    """
    The terms of one micro-batch: `total`, their weighted sum, a scalar; and `by_layer`, each layer's term before its
    weight, divided by the normalizer.
    """

    total: torch.Tensor
    by_layer: dict[int, torch.Tensor]


def layer_terms(
    states: Sequence[torch.Tensor],
    targets: NextTokenTargets,
    parts: DecoderParts,
    config: EvidenceFlowConfig,
    generator: torch.Generator,
    own_modules: nn.ModuleDict,
    weights: dict[int, float],
    normalizer: torch.Tensor | float | None = None,
) -> LayerTerms:
    """
    The objective on each layer that has a weight; other arguments as in [`LayerBatch`], with all N valid positions.
    """
    layers = supervised_layers(config, len(states))
    batch = LayerBatch(states, *targets, layers, parts, config, generator, own_modules, normalizer)
    count = len(targets.labels)
    drawn = max(1, round(config.resolved_token_fraction * count)) if count else 0
    if drawn < count and normalizer is not None:
        batch.normalizer = normalizer * (drawn / count)
    terms = {}
    for layer in weights:
        part = batch
        if drawn < count:
            chosen = torch.randperm(count, generator=generator)[:drawn].to(targets.index.device)
            part = replace(batch, index=targets.index[chosen], labels=targets.labels[chosen])
        terms[layer] = config.traits.term(part, layer)
    total = sum((weights[layer] * term for layer, term in terms.items()), states[0].new_zeros(()))
    return LayerTerms(total, terms)
