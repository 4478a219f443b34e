"""The terms of the supervised layers of one micro-batch, from the recorded states: what an objective needs, gathered.

Shapes: B rows, T positions, H hidden size, V vocabulary, N valid positions, n of them drawn for a layer.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from ..losses import (
    NextTokenTargets,
    cosine,
    cross_entropy,
    layer_selection,
    layer_weights,
    lens_kl,
    mse,
    nitp,
    normalized_mse,
    released_features,
    shuffled,
    zero,
)
from ..models.decoder import DecoderParts
from .config import READOUT_OBJECTIVES, EvidenceFlowConfig


def supervised_layers(config: EvidenceFlowConfig, num_layers: int) -> list[int]:
    """
    The layers that get a term.

    Args:
        config ([`EvidenceFlowConfig`]):
            Settings.
        num_layers (`int`):
            Number of layers; a looped block counts each of its loops.

    Returns:
        `list[int]`: ids in rising order.

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
    if config.objective in READOUT_OBJECTIVES and isinstance(config.layers, str):
        layers = [layer for layer in layers if layer < num_layers - 1]
        if not layers:
            raise ValueError(
                f"`layers={config.layers!r}` names only the last of {num_layers} layers, which has the model's own "
                f"loss: {config.objective!r} needs others."
            )
    return layers


def make_own_modules(
    config: EvidenceFlowConfig, parts: DecoderParts, num_layers: int, generator: torch.Generator
) -> nn.ModuleDict:
    """
    The objective's own modules: the projection of `nitp`, the norms and heads of `deep_supervision`; else none.

    Args:
        config ([`EvidenceFlowConfig`]):
            Settings.
        parts ([`DecoderParts`]):
            Parts of the model.
        num_layers (`int`):
            Number of layers.
        generator (`torch.Generator`):
            On CPU; source of the initial values.

    Returns:
        `nn.ModuleDict`: on the device of the head, in fp32.
    """
    vocab_size, hidden_size = parts.head.weight.shape
    with torch.device("meta"):  # the constructors would draw from the global generator
        if config.objective == "nitp":
            modules = {"projection": nn.Linear(hidden_size, hidden_size, bias=False)}
        elif config.objective == "deep_supervision":
            modules = {
                str(layer): nn.Sequential(nn.RMSNorm(hidden_size), nn.Linear(hidden_size, vocab_size, bias=False))
                for layer in supervised_layers(config, num_layers)
            }
        else:
            modules = {}
    own = nn.ModuleDict(modules).to_empty(device=parts.head.weight.device).float()
    with torch.no_grad():
        for module in own.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=generator))
            elif isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
    return own


@dataclasses.dataclass
class LayerTerms:
    """
    The terms of one micro-batch.

    Attributes:
        total (`torch.Tensor` of shape `()`):
            Their sum, weighted by layer.
        by_layer (`dict[int, torch.Tensor]`):
            Each supervised layer's term before its weight, divided by the normalizer.
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
    normalizer: torch.Tensor | float | None = None,
) -> LayerTerms:
    """
    The objective on each supervised layer.

    Args:
        states (`Sequence[torch.Tensor]` of shape `(B, T, H)` each):
            States after each layer, before the final norm.
        targets ([`~hf_evidenceflow.losses.NextTokenTargets`]):
            The N valid positions and their labels.
        parts ([`DecoderParts`]):
            Parts of the model.
        config ([`EvidenceFlowConfig`]):
            Settings; `weight` and its schedule are the caller's.
        generator (`torch.Generator`):
            On CPU; source of the draws of tokens.
        own_modules (`nn.ModuleDict`):
            From [`make_own_modules`].
        normalizer (`torch.Tensor` of shape `()` or `float`, *optional*):
            What sums over tokens are divided by; `None`: N.

    Returns:
        [`LayerTerms`].
    """
    layers = supervised_layers(config, len(states))
    count = len(targets.labels)
    drawn = max(1, round(config.resolved_token_fraction * count)) if count else 0
    if drawn < count and normalizer is not None:
        normalizer = normalizer * (drawn / count)
    rows = None
    if config.objective not in READOUT_OBJECTIVES and config.objective not in ("zero", "nitp") and drawn == count:
        rows = target_rows(targets.labels, parts, config)

    terms = {}
    for place, layer in enumerate(layers):
        index, labels = targets
        if drawn < count:
            chosen = torch.randperm(count, generator=generator)[:drawn].to(index.device)
            index, labels = index[chosen], labels[chosen]
        features = slice(None)
        if config.target_mask:
            features = released_features(len(layers), place, states[layer].shape[-1])
        terms[layer] = _term(
            layer, states, index, labels, rows, features, parts, config, generator, own_modules, normalizer
        )
    weights = layer_weights(config.layer_weights, len(layers))
    return LayerTerms(sum(weight * term for weight, term in zip(weights, terms.values())), terms)


def target_rows(labels: torch.Tensor, parts: DecoderParts, config: EvidenceFlowConfig) -> torch.Tensor:
    """
    The embedding rows that states are pulled to.

    Args:
        labels (`torch.Tensor` of shape `(N,)`):
            The right next tokens.
        parts ([`DecoderParts`]):
            Parts of the model.
        config ([`EvidenceFlowConfig`]):
            Its `target` and `detach_target`.

    Returns:
        `torch.Tensor` of shape `(N, H)`.
    """
    if config.resolved_target == "output_embedding":
        rows = parts.head.weight[labels]
    else:
        # `forward`, since NEFTune's hook would add noise to the targets
        rows = parts.embeddings.forward(labels[None])[0]
    return rows.detach() if config.detach_target else rows


def _term(layer, states, index, labels, rows, features, parts, config, generator, own_modules, normalizer):
    """The objective on the selected positions of one layer."""
    selected = states[layer].flatten(0, 1)[index]  # [n, H]
    objective = config.objective
    if objective == "cross_entropy":
        return cross_entropy(selected, labels, parts.readout, normalizer, config.chunk_size)
    if objective == "deep_supervision":
        own_head = own_modules[str(layer)]
        return cross_entropy(selected.float(), labels, own_head, normalizer, config.chunk_size)
    if objective == "lens_kl":
        final = states[-1].flatten(0, 1)[index]
        return lens_kl(selected, final, parts.readout, normalizer, config.chunk_size)
    if config.apply_final_norm:
        selected = parts.normalize(selected)
    if objective == "nitp":
        shallow = states[config.shallow_layer].flatten(0, 1)[index + 1]
        return nitp(own_modules["projection"](selected.float()), shallow.float(), normalizer)
    if objective == "zero":
        return zero(selected[:, features], normalizer)
    if rows is None:
        rows = target_rows(labels, parts, config)
    if objective == "shuffled":
        return shuffled(selected[:, features], rows[:, features], generator, normalizer)
    function = {"mse": mse, "normalized_mse": normalized_mse, "cosine": cosine}[objective]
    return function(selected[:, features], rows[:, features], normalizer)
