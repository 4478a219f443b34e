"""One forward pass of the probe: the states of all layers at the valid positions, and what is measured in them.

Shapes: B rows, T positions, N positions with a right next token, H hidden size, V vocabulary, K listed tokens, L
layers; the embedding stands before them, so that the first axis of a measure has L+1 entries.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..losses.next_token import NextTokenTargets, next_token_targets
from ..losses.tokens import at_least_float32
from ..models.decoder import DecoderParts, record_layer_states
from .measures import lens_measures, state_measures


_LENS_NAMES = ("lens_loss", "label_rank", "label_probability", "entropy", "log_odds", "top_ids", "top_probabilities")


@dataclass(frozen=True)
class MeasuredTokens:
    """
    The N valid tokens of one batch, all on the CPU. Made by [`measure_batch`].

    Attributes:
        rows, positions, input_ids, labels (`torch.Tensor` of shape `(N,)`):
            Row and position in the batch, the token there and the right next one; int64.
        measures (`dict[str, torch.Tensor]`):
            Tensors of shape (L+1, N) by name.
        top_ids, top_probabilities (`torch.Tensor` of shape `(L+1, N, K)`):
            The most probable tokens, best first.
        states (`list[torch.Tensor]` of length `L+1`):
            States of shape (N, H) in at least fp32.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    measures: dict[str, torch.Tensor]
    top_ids: torch.Tensor
    top_probabilities: torch.Tensor
    states: list[torch.Tensor]


@torch.no_grad()
def measure_batch(
    model: nn.Module, parts: DecoderParts, batch: Mapping[str, torch.Tensor], top_k: int, chunk_size: int
) -> MeasuredTokens:
    """
    Run a batch and measure each layer at each position that has a right next token.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model to call; in eval mode during the call.
        parts ([`DecoderParts`]):
            Its parts.
        batch (`Mapping[str, torch.Tensor]`):
            `input_ids` of shape (B, T), other arguments of the forward, and `labels` (not shifted), by default the
            `input_ids`.
        top_k (`int`):
            Number of listed tokens K.
        chunk_size (`int`):
            Tokens that are read out at a time.

    Returns:
        [`MeasuredTokens`].

    Raises:
        ValueError: if the model does more between its last layer and its logits than the lens does, or its embeddings
            have another width than its layers.
    """
    device = parts.embeddings.weight.device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    ids = inputs["input_ids"]
    labels = batch.get("labels", ids).to(device)
    targets = next_token_targets(labels, inputs.get("attention_mask"), inputs.get("position_ids"))
    with _eval_mode(model), _record_states(parts) as states:
        logits = model(**inputs, use_cache=False).logits
    parts.check_readout(states[-1], logits)

    states = [state.flatten(0, 1)[targets.index.to(state.device)] for state in states]  # L + 1 of [N, H]
    logits = logits.flatten(0, 1)[targets.index.to(logits.device)]  # [N, V]
    stacked = _measure_layers(parts, states, logits, targets, top_k, chunk_size)
    return MeasuredTokens(
        rows=(targets.index // ids.shape[1]).cpu(),
        positions=(targets.index % ids.shape[1]).cpu(),
        input_ids=ids.flatten()[targets.index].cpu(),
        labels=targets.labels.cpu(),
        top_ids=stacked.pop("top_ids"),
        top_probabilities=stacked.pop("top_probabilities"),
        measures=stacked,
        states=[at_least_float32(state).cpu() for state in states],
    )


def _measure_layers(parts, states, logits, targets: NextTokenTargets, top_k, chunk_size):
    embedded = parts.embeddings(targets.labels)  # [N, H]
    output_rows = parts.head.weight[targets.labels.to(parts.head.weight.device)]  # [N, H]
    layers = []
    for depth, state in enumerate(states):
        previous = states[depth - 1].to(state.device) if depth else None
        measures = state_measures(state, previous, embedded.to(state.device), output_rows.to(state.device))
        chunks = []
        for chunk, own, labels in zip(*(tensor.split(chunk_size) for tensor in (state, logits, targets.labels))):
            # The last layer's logits are the model's own: a readout in other chunks could round otherwise
            read = own if depth == len(states) - 1 else parts.readout(chunk)
            chunks.append(lens_measures(read, labels.to(read.device), top_k))
        lens = (torch.cat(values) for values in zip(*chunks))
        layers.append({name: value.cpu() for name, value in (measures | dict(zip(_LENS_NAMES, lens))).items()})
    return {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}


@contextlib.contextmanager
def _record_states(parts: DecoderParts) -> Iterator[list[torch.Tensor]]:
    """The input of the first layer, then the states after each layer and loop."""

    def keep_input(module, args, kwargs):
        if not states:  # a looped block is called again with the states of its last loop
            states.append(args[0] if args else kwargs["hidden_states"])

    with record_layer_states(parts) as states:
        handle = parts.layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)
        try:
            yield states
        finally:
            handle.remove()


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
